"""Which control plane, namespace and RayService the commands of `sm4ll k8s` mean."""

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
Namespace = Annotated[str, typer.Option("-n", "--namespace", help="Where the cluster is.")]
Name = Annotated[str, typer.Option(help="Name of the RayService.")]


def open_control_plane(context: str | None) -> "ControlPlane":
    # 0.5 s of imports, which `sm4ll --help` does not wait for.
    from k8s.control.api import ControlPlane

    return ControlPlane.configured(Settings(), context)
