"""Versions that are added to a running cluster, and taken away again, without touching the rest."""

import ipaddress
from pathlib import Path
from time import sleep
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
import yaml
from rich import box
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from deployments.bundle import bundle_path
from serve.client import ApiError, Client
from serve.commands.connection import connect
from serve.commands.console import Family, Url, err, out
from serve.config import FamilyConfig, load_yaml
from serve.errors import ConfigError
from serve.schemas.versions import NewVersion, VersionCard
from serve.settings import Settings

POLL_S = 0.5
# Routers hear of a change within this time: whoever asks them now may be told "no such version".
HEARD_S = 3.0

Version = Annotated[str, typer.Argument(help="Which one, for example eye@2.")]


def deploy(
    version: Version,
    bundle: Annotated[
        Path | None,
        typer.Option(help="The bundle's file; eye.2.yaml among the family's when absent."),
    ] = None,
    home: Annotated[
        str | None,
        typer.Option(
            help="Folder on the cluster's machines where golden samples and relative paths of the "
            "bundle are; the file's own where the cluster is this machine."
        ),
    ] = None,
    min_replicas: Annotated[int | None, typer.Option(min=0, help="1 when absent.")] = None,
    max_replicas: Annotated[int | None, typer.Option(min=1, help="2 when absent.")] = None,
    num_gpus: Annotated[float | None, typer.Option(min=0, help="Of each replica.")] = None,
    num_cpus: Annotated[float | None, typer.Option(min=0, help="Of each replica.")] = None,
    allow_noncommercial: Annotated[
        bool, typer.Option(help="Serve it although its licence forbids commercial use.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Until it is ready, or failed (exit 1).")] = True,
    timeout_s: Annotated[float, typer.Option(min=1, help="How long to wait.")] = 1800.0,
    family: Family = None,
    url: Url = None,
) -> None:
    """Add a version to the running cluster; nothing else is started again.

    Its golden samples are painted first where it has some: a version that drifts never becomes
    ready, and this says by how much. Needs a key with the scope `admin`.

    For example: sm4ll experts deploy eye@2 --max-replicas 4
    """
    path = bundle or bundle_path(_bundles_dir(family), version)
    document = read_document(path, version)
    deployed = describe_replicas(
        min_replicas, max_replicas, num_gpus, num_cpus, allow_noncommercial
    )
    with connect(url) as client:
        if home is None:
            home = str(path.parent.resolve()) if is_this_machine(client.url) else ""
        card = client.versions.deploy(NewVersion(bundle=document, deployed=deployed, home=home))
        if wait:
            with err.status(_tell(card)) as status:
                card = follow(client, card, timeout_s, status)
    if card.state == "failed":
        err.print(f"{version} failed: {card.reason}", markup=False)
        raise typer.Exit(1)
    if wait and card.state != "ready":
        err.print(f"{version} is still {_tell(card)}", markup=False)
        raise typer.Exit(1)
    out.print(_tell(card), markup=False, highlight=False)


def undeploy(
    version: Version,
    wait: Annotated[bool, typer.Option(help="Until it is gone.")] = True,
    timeout_s: Annotated[float, typer.Option(min=1, help="How long to wait.")] = 300.0,
    url: Url = None,
) -> None:
    """Take a version away that was added; requests that have it go on to their end.

    Refused while requests that name no version may get it: as a default, an arm of an experiment,
    in a rollout, or because a collection is pinned to it.

    For example: sm4ll experts undeploy eye@2
    """
    with connect(url) as client:
        card: VersionCard | None = client.versions.undeploy(version)
        if wait:
            with err.status(f"{version}: removing"):
                card = await_gone(client, version, timeout_s)
    if wait and card is not None:
        err.print(f"{version} is still {card.state}", markup=False)
        raise typer.Exit(1)
    out.print(f"{version}: {'gone' if wait else 'removing'}", markup=False, highlight=False)


def served(url: Url = None) -> None:
    """List the versions that were added to the cluster and how they stand, newest first.

    For example: sm4ll experts served
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("version", "state", "since", "bundle"):
        table.add_column(heading, no_wrap=True)
    table.add_column("reason", overflow="fold")
    with connect(url) as client:
        for card in client.versions.list():
            bundle = (card.bundle_sha256 or "unreadable")[:12]
            since = f"{card.updated_at:%Y-%m-%d %H:%M}"
            reason = escape(card.reason or "")
            table.add_row(card.version, card.state, since, bundle, reason)
    out.print(table)


def follow(
    client: Client,
    card: VersionCard,
    timeout_s: float,
    status: Status | None = None,
) -> VersionCard:
    """Until it is ready and every router knows it, or failed, or so long."""
    for _ in range(int(timeout_s / POLL_S)):
        if card.state in ("ready", "failed"):
            break
        sleep(POLL_S)
        card = client.versions.get(card.version)
        if status is not None:
            status.update(escape(_tell(card)))
    if card.state == "ready":
        sleep(HEARD_S)
    return card


def await_gone(client: Client, version: str, timeout_s: float) -> VersionCard | None:
    """None when it is gone."""
    card: VersionCard | None = None
    for _ in range(max(1, int(timeout_s / POLL_S))):
        try:
            card = client.versions.get(version)
        except ApiError as exc:
            if exc.problem.status == 404:
                return None
            raise
        sleep(POLL_S)
    return card


def read_document(path: Path, version: str) -> dict[str, Any]:
    """The bundle as its file has it; what it means is for the cluster to say.

    Raises:
        ConfigError: it cannot be read, or is another version's.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such file; --bundle says where it is") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not readable as YAML: {exc}") from exc
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: must be a mapping, got {type(document).__name__}")
    found = f"{document.get('expert')}@{document.get('name')}"
    if found != version:
        raise ConfigError(f"{path}: this is the bundle of {found}, not of {version}")
    return document


def describe_replicas(
    min_replicas: int | None,
    max_replicas: int | None,
    num_gpus: float | None,
    num_cpus: float | None,
    allow_noncommercial: bool,
) -> dict[str, Any]:
    """What was said, as the family file says it."""
    if max_replicas is None and min_replicas is not None and min_replicas > 2:
        max_replicas = min_replicas
    autoscaling = {"min_replicas": min_replicas, "max_replicas": max_replicas}
    resources = {"num_gpus": num_gpus, "num_cpus": num_cpus}
    deployed: dict[str, Any] = {}
    for name, said in (("autoscaling", autoscaling), ("resources", resources)):
        given = {field: value for field, value in said.items() if value is not None}
        if given:
            deployed[name] = given
    if allow_noncommercial:
        deployed["allow_noncommercial"] = True
    return deployed


def is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bundles_dir(family: Path | None) -> Path:
    path = (family or Settings().family).resolve()
    return path.parent / load_yaml(path, FamilyConfig).bundles_dir


def _tell(card: VersionCard) -> str:
    return f"{card.version}: {card.state}" + (f" ({card.reason})" if card.reason else "")
