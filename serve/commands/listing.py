"""What a running API serves."""

import typer
from rich import box
from rich.table import Table

from serve.commands.connection import connect
from serve.commands.console import Url, out


def experts(context: typer.Context, url: Url = None) -> None:
    """List the deployed expert versions; or, with a command, work on one."""
    if context.invoked_subcommand is not None:
        return
    with connect(url) as client:
        models = client.models().models
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("version", "state", "backend", "status", "licence"):
        table.add_column(heading, no_wrap=True)
    table.add_column("what it does")
    for model in models:
        version = f"{model.version} *" if model.default else model.version
        backend = f"{model.backend}, preview" if model.preview else model.backend
        licence = model.licence if model.commercial_use else f"{model.licence}, non-commercial"
        table.add_row(version, model.state, backend, model.status, licence, model.title)
    out.print(table)
    out.print("* the version a request gets when it names none")
