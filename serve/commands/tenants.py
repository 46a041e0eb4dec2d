"""Tenants, their keys and the audit log, through the API of a running service."""

from typing import Annotated

import typer
from pydantic import ValidationError
from rich import box
from rich.markup import escape
from rich.table import Table

from serve.commands.connection import connect
from serve.commands.console import Url, err, out
from serve.policy import SCOPES, TenantPolicy
from serve.schemas.tenants import NewTenant, TenantCard, TenantChange

Tenant = Annotated[str, typer.Argument(help="Id of the tenant.")]
Changes = Annotated[
    list[str],
    typer.Argument(help="FIELD=VALUE: a number, a word, a,b for a list, or none for no limit."),
]
LISTS = ("experts", "versions")


def list_tenants(url: Url = None) -> None:
    """List tenants, newest first.

    For example: sm4ll tenants list
    """
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("id", overflow="fold")
    for heading in ("name", "since", "limits"):
        table.add_column(heading, no_wrap=heading == "since", overflow="fold")
    with connect(url) as client:
        for tenant in client.tenants():
            name = f"{tenant.name} (disabled)" if tenant.disabled_at else tenant.name
            since = f"{tenant.created_at:%Y-%m-%d}"
            table.add_row(tenant.id, escape(name), since, escape(_limits(tenant.policy)))
    out.print(table)


def create(
    name: Annotated[str, typer.Argument(help="What people call it.")],
    tenant_id: Annotated[str | None, typer.Option("--id", help="Made when absent.")] = None,
    url: Url = None,
) -> None:
    """Create a tenant without limits; `sm4ll tenants policy` sets them.

    For example: sm4ll tenants create "Acme Eyewear" --id acme
    """
    try:
        new = NewTenant(id=tenant_id, name=name)
    except ValidationError as exc:
        raise _bad(exc) from exc
    with connect(url) as client:
        tenant = client.create_tenant(new)
    out.print(tenant.id, markup=False, highlight=False)


def policy(tenant: Tenant, changes: Changes, url: Url = None) -> None:
    """Change limits of a tenant; what is not named stays. Effective within 5 seconds.

    For example: sm4ll tenants policy acme experts=eye,shoes requests_per_minute=600 weight=2
    """
    change = TenantChange(policy=parse_policy(changes))
    with connect(url) as client:
        _say(client.change_tenant(tenant, change))


def disable(tenant: Tenant, url: Url = None) -> None:
    """Let none of a tenant's keys work, within 5 seconds; nothing more of it is started or sent.

    For example: sm4ll tenants disable acme
    """
    with connect(url) as client:
        _say(client.change_tenant(tenant, TenantChange(disabled=True)))


def enable(tenant: Tenant, url: Url = None) -> None:
    """Let a disabled tenant's keys work again; its jobs and messages go on.

    For example: sm4ll tenants enable acme
    """
    with connect(url) as client:
        _say(client.change_tenant(tenant, TenantChange(disabled=False)))


def verify_audit(
    head: Annotated[
        str | None, typer.Option(help="A head that was kept: finds a log whose end was cut off.")
    ] = None,
    url: Url = None,
) -> None:
    """Walk the audit log's chain; exits 1 and names the first record that does not fit.

    For example: sm4ll tenants audit verify
    """
    with connect(url) as client:
        verdict = client.verify_audit(head)
    if not verdict.intact:
        err.print(f"Record {verdict.broken_sequence}: {verdict.reason}", markup=False)
        raise typer.Exit(1)
    out.print(f"{verdict.num_records} records, all in order. Keep this head elsewhere:")
    out.print(verdict.head_sha256, markup=False, highlight=False)


def parse_policy(changes: list[str]) -> TenantPolicy:
    """FIELD=VALUE pairs as a policy on which only these fields are set.

    Raises:
        typer.BadParameter: no such field, or the value does not fit; names the field.
    """
    values: dict[str, object] = {}
    for change in changes:
        field, separator, value = change.partition("=")
        if not separator or field not in TenantPolicy.model_fields:
            known = ", ".join(TenantPolicy.model_fields)
            raise typer.BadParameter(f"{change}: write FIELD=VALUE with a field of {known}")
        values[field] = _parse_value(field, value)
    try:
        return TenantPolicy.model_validate(values)
    except ValidationError as exc:
        raise _bad(exc) from exc


def _parse_value(field: str, value: str) -> object:
    if value == "none":
        return None
    return [part for part in value.split(",") if part] if field in LISTS else value


def parse_scopes(text: str) -> tuple[str, ...]:
    """
    Raises:
        typer.BadParameter: not a scope.
    """
    scopes = tuple(part.strip() for part in text.split(",") if part.strip())
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise typer.BadParameter(f"--scopes: of {', '.join(SCOPES)}, with commas, not {text!r}")
    return scopes


def _say(tenant: TenantCard) -> None:
    state = "disabled" if tenant.disabled_at else "enabled"
    out.print(f"{tenant.id}: {state}; {_limits(tenant.policy)}", markup=False, highlight=False)


def _limits(policy: TenantPolicy) -> str:
    set_fields = policy.model_dump(mode="json", exclude_defaults=True)
    shown = (
        f"{field}={','.join(value) if isinstance(value, list) else value}"
        for field, value in set_fields.items()
    )
    return " ".join(shown) or "none"


def _bad(exc: ValidationError) -> typer.BadParameter:
    first = exc.errors()[0]
    return typer.BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
