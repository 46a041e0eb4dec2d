"""Which control plane, namespace and RayService the commands of `sm4ll k8s` mean."""

import re
from typing import TYPE_CHECKING, Annotated

import typer

from serve.settings import Settings

if TYPE_CHECKING:
    from k8s.control.api import ControlPlane

DEFAULT_NAMESPACE = "sm4ll"
SERVICE = "sm4ll"

Context = Annotated[
    str | None, typer.Option(help="Context of the kubeconfig; the current one when absent.")
]
# Source: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/, RFC 1123 labels
LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def check_label(value: str | None) -> str | None:
    """A variable that is not set leaves an empty name, by which the API server means every
    namespace; `delete` must not."""
    if value is not None and LABEL.fullmatch(value) is None:
        raise typer.BadParameter(
            f"{value!r} is no name in Kubernetes: at most 63 of a-z, 0-9 and -, no - at the ends"
        )
    return value


Namespace = Annotated[
    str, typer.Option("-n", "--namespace", callback=check_label, help="Where the cluster is.")
]
Name = Annotated[str, typer.Option(callback=check_label, help="Name of the RayService.")]


def open_control_plane(context: str | None) -> "ControlPlane":
    # 0.5 s of imports, which `sm4ll --help` does not wait for.
    from k8s.control.api import ControlPlane

    return ControlPlane.configured(Settings(), context)
