"""Put a product on a person through a running API."""

from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from serve.commands.connection import connect
from serve.commands.console import Url, err, out
from serve.messages import EXPERTS
from serve.schemas.tryon import TryOnOptions

EXTENSIONS = {".png": "png", ".webp": "webp", ".jpg": "jpeg", ".jpeg": "jpeg", ".tif": "tiff"}
EXTENSIONS[".tiff"] = "tiff"


def tryon(
    expert: Annotated[str, typer.Option(help=f"One of {', '.join(EXPERTS)}.")],
    person: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Person photo.")],
    product: Annotated[Path, typer.Option(exists=True, dir_okay=False, help="Product photo.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Where the picture goes; .zip for all layers.")
    ],
    mask: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Your own: white may change.")
    ] = None,
    version: Annotated[str | None, typer.Option(help="For example eye@2.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same picture.")] = None,
    quality: Annotated[str, typer.Option(help="draft, normal or high.")] = "normal",
    blend: Annotated[str, typer.Option(help="exact or seamless.")] = "exact",
    unit: Annotated[str | None, typer.Option(help="Which of your users it is for.")] = None,
    sku: Annotated[str | None, typer.Option(help="Which product it is.")] = None,
    collection: Annotated[
        str | None, typer.Option(help="What it belongs to; `sm4ll pins` keeps it on versions.")
    ] = None,
    url: Url = None,
) -> None:
    """Put a product on a person.

    For example: sm4ll tryon --expert eye --person a.jpg --product b.png -o out.png
    """
    suffix = output.suffix.lower()
    if suffix not in EXTENSIONS and suffix != ".zip":
        known = " ".join([*EXTENSIONS, ".zip"])
        raise typer.BadParameter(f"{output}: the name must end in one of {known}")
    options = _options(
        expert=expert,
        version=version,
        seed=seed,
        quality=quality,
        blend=blend,
        unit=unit,
        sku=sku,
        collection=collection,
        format=EXTENSIONS.get(suffix),
    )
    pictures = (person.read_bytes(), product.read_bytes(), mask.read_bytes() if mask else None)
    receipt = None
    with connect(url) as client, err.status(f"Trying {product.name} on ..."):
        if suffix == ".zip":
            output.write_bytes(client.tryon_layers(options, *pictures))
        else:
            answer = client.tryon(options, *pictures)
            output.write_bytes(answer.pictures[0].data)
            receipt = answer.receipt
    out.print(f"{output}", markup=False)
    if receipt is not None:
        outside = receipt.outside.max_abs_diff
        preview = "  a preview: no weights were used" if receipt.preview else ""
        arm = receipt.arm if receipt.experiment is None else f"{receipt.experiment}/{receipt.arm}"
        out.print(
            f"{receipt.version}  {arm}  {receipt.timings_ms['total']:.0f} ms  seed {receipt.seed}  "
            f"outside max diff {outside}{preview}"
        )


def _options(**values: object) -> TryOnOptions:
    try:
        return TryOnOptions.model_validate(values)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise typer.BadParameter(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from exc
