"""Where commands speak: results on one stream, everything else on the other."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

Family = Annotated[
    Path | None, typer.Option(help="Family file; the shipped configs/family.yaml when absent.")
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port of the API.")]
Url = Annotated[str | None, typer.Option(help="Address of the API; or SM4LL_URL.")]


def tell_misfit(error: ValidationError) -> str:
    """The first of what does not fit, in words for whoever wrote the file."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    words = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        words = "there is no such field"
    elif first["type"] == "missing":
        words = "is missing"
    return f"{where}: {words}" if where else words
