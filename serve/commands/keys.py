"""Keys of a tenant, through the API of a running service; a token is shown once."""

from typing import Annotated

import typer
from pydantic import ValidationError
from rich import box
from rich.markup import escape
from rich.table import Table

from serve.commands.connection import connect
from serve.commands.console import Url, err, out
from serve.commands.tenants import Tenant, parse_scopes
from serve.policy import DAY_S, SCOPES
from serve.schemas.keys import KeyCard, KeyMinted, KeyRotation, NewKey

ID_LENGTH = 30
DATE_LENGTH = 10
KeyId = Annotated[str, typer.Argument(help="Id of the key, key_...")]


def list_keys(tenant: Tenant, url: Url = None) -> None:
    """List a tenant's keys, newest first; no secret is shown.

    For example: sm4ll tenants keys list acme
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    table.add_column("id", no_wrap=True, min_width=ID_LENGTH)  # an id cut short is of no use
    for heading in ("name", "scopes", "state"):
        table.add_column(heading, overflow="fold")
    table.add_column("last used", overflow="fold", min_width=DATE_LENGTH)
    with connect(url) as client:
        for key in client.keys(tenant):
            used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never"
            table.add_row(key.id, escape(key.name), " ".join(key.scopes), _state(key), used)
    out.print(table)


def create(
    tenant: Tenant,
    name: Annotated[str, typer.Option(help="Who or what uses it.")],
    scopes: Annotated[str, typer.Option(help=", ".join(SCOPES) + ".")] = "tryon,jobs,versions",
    days: Annotated[float | None, typer.Option(min=0, help="It never expires when absent.")] = None,
    url: Url = None,
) -> None:
    """Create a key and print its token, which nobody can show again.

    For example: sm4ll tenants keys create acme --name storefront --days 90
    """
    try:
        new = NewKey.model_validate(
            {
                "name": name,
                "scopes": parse_scopes(scopes),
                "expires_in_s": None if days is None else days * DAY_S,
            }
        )
    except ValidationError as exc:
        first = exc.errors()[0]
        raise typer.BadParameter(f"{first['loc'][0]}: {first['msg']}") from exc
    with connect(url) as client:
        _say(client.create_key(tenant, new))


def rotate(
    tenant: Tenant,
    key_id: KeyId,
    overlap_h: Annotated[float, typer.Option(min=0, help="Hours the old key still works.")] = 24.0,
    url: Url = None,
) -> None:
    """Make a new key in place of another and print its token.

    For example: sm4ll tenants keys rotate acme key_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        _say(client.rotate_key(tenant, key_id, KeyRotation(overlap_s=overlap_h * 3600)))
    err.print(f"{key_id} works for {overlap_h:g} h more.", markup=False, highlight=False)


def revoke(tenant: Tenant, key_id: KeyId, url: Url = None) -> None:
    """Let a key work no more, within 5 seconds.

    For example: sm4ll tenants keys revoke acme key_0123456789abcdefghjkmnpqrs
    """
    with connect(url) as client:
        client.revoke_key(tenant, key_id)
    out.print(f"{key_id} is revoked.", markup=False, highlight=False)


def _say(key: KeyMinted) -> None:
    """The token alone on standard output, so that a script can keep it."""
    expires = f", until {key.expires_at:%Y-%m-%d %H:%M} UTC" if key.expires_at else ""
    err.print(f"{key.id} ({' '.join(key.scopes)}){expires}; shown once:", markup=False)
    out.print(key.token, markup=False, highlight=False)


def _state(key: KeyCard) -> str:
    if key.revoked_at:
        return f"revoked {key.revoked_at:%Y-%m-%d}"
    return f"until {key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "works"
