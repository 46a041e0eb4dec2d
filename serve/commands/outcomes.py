"""What became of answers, said one by one or from what a shop exports."""

import csv
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, get_args

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from serve.commands.connection import connect
from serve.commands.console import Url, err, out
from serve.commands.patience import patiently
from serve.schemas.outcomes import MAX_OUTCOMES, OutcomeSaid, VerdictName

VERDICTS = get_args(VerdictName)
COLUMNS = ("request_id", "verdict", "reason")
MAX_SHOWN = 20
"""Bad lines that are told one by one."""


def add(
    request: Annotated[
        str, typer.Argument(help="X-Request-Id of the answer, its id (tr_...), or a job's.")
    ],
    verdict: Annotated[str, typer.Argument(help=f"{', '.join(VERDICTS)}.")],
    reason: Annotated[str, typer.Option(help="In your words.")] = "",
    url: Url = None,
) -> None:
    """Say what became of one answer.

    For example: sm4ll outcomes add req_0f3a9c rejected --reason "colour is off"
    """
    try:
        said = OutcomeSaid.model_validate(
            {"request_id": request, "verdict": verdict, "reason": reason}
        )
    except ValidationError as exc:
        raise typer.BadParameter(_why(exc)) from exc
    with connect(url) as client:
        card = client.outcomes.add(said.request_id, said.verdict, said.reason)
    out.print(f"{card.id}  {card.verdict}", markup=False, highlight=False)


def import_file(
    file: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="CSV with request_id, verdict and perhaps reason."
        ),
    ],
    url: Url = None,
) -> None:
    """Say what a file of your shop's says; lines that make no sense are told, the others sent.

    Sent again, nothing is counted twice. For example: sm4ll outcomes import returns.csv
    """
    said: list[OutcomeSaid] = []
    bad: list[tuple[int, str]] = []
    for line, found in _read(file):
        if isinstance(found, OutcomeSaid):
            said.append(found)
        else:
            bad.append((line, found))
    num_new = 0
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with connect(url) as client, Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("", total=len(said))
        for start in range(0, len(said), MAX_OUTCOMES):
            part = said[start : start + MAX_OUTCOMES]
            num_new += patiently(partial(client.outcomes.add_all, part)).num_new
            progress.advance(bar, len(part))
    counts = f"{num_new} new, {len(said) - num_new} said before, {len(bad)} lines not understood"
    out.print(counts, highlight=False)
    for line, why in bad[:MAX_SHOWN]:
        err.print(f"{file.name}:{line}: {why}", markup=False, highlight=False)
    if len(bad) > MAX_SHOWN:
        err.print(f"and {len(bad) - MAX_SHOWN} more", highlight=False)
    if bad:
        raise typer.Exit(1)


def _read(file: Path) -> Iterator[tuple[int, OutcomeSaid | str]]:
    """Line numbers, each with what it says or why it says nothing.

    Raises:
        BadParameter: it is no such table.
    """
    try:
        # As spreadsheets write it: a mark before the first word, semicolons where decimals have
        # commas.
        with file.open(encoding="utf-8-sig", newline="") as opened:
            first = opened.readline()
            opened.seek(0)
            rows = csv.DictReader(opened, delimiter=";" if ";" in first else ",", restkey="rest")
            names = [name.strip().lower() for name in rows.fieldnames or ()]
            if not {"request_id", "verdict"} <= set(names):
                raise typer.BadParameter(f"{file.name} begins without request_id,verdict,reason")
            rows.fieldnames = names
            for row in rows:
                yield rows.line_num, _parse(row)
    except (UnicodeDecodeError, csv.Error) as exc:
        raise typer.BadParameter(f"{file.name} is no CSV file in UTF-8: {exc}") from exc


def _parse(row: dict[str, str | None]) -> OutcomeSaid | str:
    given = {name: (row.get(name) or "").strip() for name in COLUMNS}
    try:
        return OutcomeSaid.model_validate({**given, "verdict": given["verdict"].lower()})
    except ValidationError as exc:
        return _why(exc)


def _why(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{first['loc'][0]} {str(first['input'])[:80]!r}: {first['msg']}"
