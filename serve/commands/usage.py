"""What a tenant used, as a table."""

from datetime import datetime
from typing import Annotated, get_args

import typer
from pydantic import TypeAdapter, ValidationError
from rich import box
from rich.table import Table

from serve.commands.connection import connect
from serve.commands.console import Url, out
from serve.schemas.usage import BudgetState, UsageBy, UsageItem, UsageReport


def usage(
    by: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(get_args(UsageBy))}; may be repeated.")
    ] = None,
    first: Annotated[
        datetime | None,
        typer.Option("--from", formats=["%Y-%m-%d"], help="UTC; the month's first when absent."),
    ] = None,
    last: Annotated[
        datetime | None,
        typer.Option("--to", formats=["%Y-%m-%d"], help="UTC, included; today when absent."),
    ] = None,
    tenant: Annotated[str | None, typer.Option(help="Another's, for administrators.")] = None,
    url: Url = None,
) -> None:
    """Show what was used, and what is left of the month.

    For example: sm4ll usage --by version --by key --from 2026-11-01
    """
    groups = _parse_groups(by or ["day"])
    with connect(url) as client:
        report = client.usage(
            by=groups,
            first=None if first is None else first.date(),
            last=None if last is None else last.date(),
            tenant=tenant,
        )
    out.print(draw_usage(report))
    budget = report.budget
    out.print(
        f"{budget.month}: {_left(budget.gpu_seconds)} GPU-seconds, {_left(budget.images)} images"
    )


def _parse_groups(names: list[str]) -> list[UsageBy]:
    # Typer knows no list of literals.
    try:
        return TypeAdapter(list[UsageBy]).validate_python(names)
    except ValidationError as exc:
        known = ", ".join(get_args(UsageBy))
        raise typer.BadParameter(f"--by: one of {known}, not {exc.errors()[0]['input']!r}") from exc


def draw_usage(report: UsageReport) -> Table:
    """One row a group, and their sum."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_footer=True)
    total = _amounts(report.total)
    for name in report.by:
        table.add_column(name, no_wrap=True, footer="total" if name == report.by[0] else "")
    headings = (
        "requests",
        "images",
        "GPU s",
        "GPU s / image",
        "upstream USD",
        "USD",
        "USD / image",
    )
    for heading, sum_of_all in zip(headings, total, strict=True):
        table.add_column(heading, justify="right", footer=sum_of_all)
    for item in report.items:
        groups = {
            "day": item.day,
            "expert": item.expert,
            "version": item.version,
            "key": item.key_id,
        }
        table.add_row(*(str(groups[name] or "-") for name in report.by), *_amounts(item))
    return table


def _amounts(item: UsageItem) -> tuple[str, ...]:
    return (
        str(item.requests),
        str(item.images),
        f"{item.gpu_seconds:.3f}",
        _money(item.gpu_seconds_per_image, 3),
        f"{item.upstream_usd:.4f}",
        _money(item.usd, 4),
        _money(item.usd_per_image, 4),
    )


def _money(amount: float | None, digits: int) -> str:
    return "-" if amount is None else f"{amount:.{digits}f}"


def _left(state: BudgetState) -> str:
    used = f"{state.used:g} used, {state.reserved:g} reserved"
    return (
        f"{used}, no limit of"
        if state.left is None
        else f"{used}, {state.left:g} left of {state.limit:g}"
    )
