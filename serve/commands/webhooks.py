"""What was sent to your servers, once more, and the secrets that sign it."""

from typing import Annotated, get_args

import typer
from pydantic import ValidationError
from rich import box
from rich.markup import escape
from rich.table import Table

from serve.commands.connection import connect
from serve.commands.console import Url, err, out
from serve.schemas.webhooks import Delivery, DeliveryStatus, RotationRequest

ID_LENGTH = 30


def deliveries(
    status: Annotated[
        str | None, typer.Option(help=f"{', '.join(get_args(DeliveryStatus))}.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=200, help="How many at most.")] = 20,
    url: Url = None,
) -> None:
    """List messages to your servers and how they fared, newest first.

    For example: sm4ll webhooks deliveries --status failed
    """
    known = get_args(DeliveryStatus)
    if status is not None and status not in known:
        raise typer.BadParameter(f"--status: one of {', '.join(known)}, not {status!r}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("id", no_wrap=True, min_width=ID_LENGTH)
    for heading in ("event", "about", "status", "attempts", "last answer", "url"):
        table.add_column(heading, overflow="fold")
    with connect(url) as client:
        page = client.webhooks.deliveries(status, limit=limit)  # type: ignore[arg-type]
    for one in page.items:
        facts = (one.event, one.subject_id, one.status, str(one.attempts))
        table.add_row(one.id, *facts, escape(_last_answer(one)), escape(one.url))
    out.print(table)


def redeliver(
    delivery: Annotated[str, typer.Argument(help="As `sm4ll webhooks deliveries` shows it.")],
    url: Url = None,
) -> None:
    """Send a message once more, under its own id.

    For example: sm4ll webhooks redeliver whd_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        _say(client.webhooks.redeliver(delivery))


def send_test(
    receiver: Annotated[str, typer.Argument(help="An https URL of yours.")], url: Url = None
) -> None:
    """Send a message that says nothing, signed like any other.

    For example: sm4ll webhooks test https://shop.example.com/sm4ll
    """
    with connect(url) as client:
        _say(client.webhooks.send_test(receiver))


def list_secrets(url: Url = None) -> None:
    """List the secrets that sign, the current one first; no secret is shown.

    For example: sm4ll webhooks secret list
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("id", "since", "signs until"):
        table.add_column(heading, no_wrap=True)
    with connect(url) as client:
        for secret in client.webhooks.secrets().items:
            until = f"{secret.expires_at:%Y-%m-%d %H:%M}" if secret.expires_at else "always"
            table.add_row(secret.id, f"{secret.created_at:%Y-%m-%d %H:%M}", until)
    out.print(table)


def rotate_secret(
    overlap_h: Annotated[
        float, typer.Option(help="Hours the old secrets sign beside it; at most 168.")
    ] = 24.0,
    url: Url = None,
) -> None:
    """Make a new secret and print it, which nobody can show again.

    For example: sm4ll webhooks secret rotate --overlap-h 2
    """
    try:
        rotation = RotationRequest(overlap_s=overlap_h * 3600)
    except ValidationError as exc:
        raise typer.BadParameter(f"--overlap-h: {exc.errors()[0]['msg']} (in s)") from exc
    with connect(url) as client:
        secret = client.webhooks.rotate_secret(rotation)
    err.print(f"{secret.id}; shown once:", markup=False, highlight=False)
    out.print(secret.secret, markup=False, highlight=False)


def _say(delivery: Delivery) -> None:
    out.print(f"{delivery.id}  {delivery.status}", markup=False, highlight=False)


def _last_answer(delivery: Delivery) -> str:
    if delivery.last_status is not None:
        return str(delivery.last_status)
    return delivery.last_error or "-"
