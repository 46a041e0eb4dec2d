"""Where commands speak: results on one stream, everything else on the other."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

out = Console(soft_wrap=True)
err = Console(stderr=True, soft_wrap=True)

Family = Annotated[
    Path | None, typer.Option(help="Family file; the shipped configs/family.yaml when absent.")
]
Port = Annotated[int, typer.Option(min=1, max=65535, help="Port of the API.")]
Url = Annotated[str | None, typer.Option(help="Address of the API; or SM4LL_URL.")]
