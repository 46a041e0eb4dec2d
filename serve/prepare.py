"""Training inputs made by the code that serves: what an expert learns from is what it is given.

Knows pairs and files. How a pair becomes an expert's request is the pipeline's, passed in.
"""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from deployments.bundle import Bundle
from deployments.recipes import Diffusion, HostedConfig
from deployments.samples import REQUEST_FILES, SampleLandmarks, write_png, write_request
from serve import __version__
from serve.config import Config
from serve.errors import InvalidImage, RequestError
from serve.imaging.colour import crop_to_srgb
from serve.imaging.decode import decode_image
from serve.imaging.limits import ImageLimits
from serve.imaging.region import extract_crop
from serve.inputs import digest_of
from serve.pairs import Pair, Skipped
from serve.receipts import invert_plan
from serve.schemas.receipt import Affine, InputDigest, Quality
from serve.schemas.tryon import MaskConvention, TryOnOptions
from serve.steps import Prepared, TryOnWork

PAIR_TIMEOUT_S = 3600.0

Prepare = Callable[[TryOnWork], Awaitable[Prepared]]
"""The pipeline up to where the expert is asked."""


class SampleMeta(Config):
    """How one training input came to be; `meta.json` beside it."""

    name: str
    version: str
    bundle_sha256: str
    made_by: str
    """sm4ll-serve and masker, each with its version: another one prepares the pair again."""
    inputs: dict[str, str]
    """SHA-256 of each file of the pair."""
    prompt: str
    negative_prompt: str
    seed: int
    num_steps: int
    guidance: float
    masker: str
    """`caller` where the pair brought its own mask."""
    crop_box: tuple[int, int, int, int]
    """x0, y0, x1, y1 in pixels of the person's picture."""
    crop_size: tuple[int, int]
    region_box: tuple[int, int, int, int]
    product_size: tuple[int, int]
    affine: Affine
    landmarks: SampleLandmarks
    """In pixels of crop.png."""
    person: InputDigest
    product: InputDigest
    has_silhouette: bool
    """Not where the pair brought its own mask."""
    has_target: bool


class Manifest(Config):
    """What one run left behind; `manifest.json` on top."""

    version: str
    bundle_sha256: str
    made_by: str
    num_written: int
    num_kept: int
    """Were there already, from the same files by the same code."""
    samples: tuple[str, ...]
    """Folders to train on. What is not listed here is not part of the set."""
    skipped: tuple[Skipped, ...]
    bundle: dict[str, Any]
    """All that was pinned."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What shall be made of every pair."""

    bundle: Bundle
    made_by: str
    limits: ImageLimits
    quality: Quality = "normal"
    mask_convention: MaskConvention = "white_edits"


Outcome = tuple[Literal["written", "kept"], SampleMeta] | tuple[Literal["skipped"], Skipped]


def name_maker(masker: str) -> str:
    """`SampleMeta.made_by` of this code with one masker."""
    return f"sm4ll-serve {__version__}, {masker}"


async def prepare_pairs(
    pairs: Sequence[Pair],
    plan: Plan,
    prepare: Prepare,
    out_dir: Path,
    on_done: Callable[[Outcome], None],
    num_workers: int = 2,
) -> list[Outcome]:
    """Write the training input of every pair into a folder of its own.

    Args:
        on_done: called after each pair, in the order they finish.
        num_workers: pairs in work at once.

    Returns:
        One outcome per pair, in order.
    """
    free = asyncio.Semaphore(num_workers)

    async def work(pair: Pair) -> Outcome:
        async with free:
            outcome = await _prepare_pair(pair, plan, prepare, out_dir / pair.name)
        on_done(outcome)
        return outcome

    return list(await asyncio.gather(*(work(pair) for pair in pairs)))


async def _prepare_pair(pair: Pair, plan: Plan, prepare: Prepare, home: Path) -> Outcome:
    try:
        files = await asyncio.to_thread(_read_files, pair)
        inputs = {role: hashlib.sha256(data).hexdigest() for role, data in files.items()}
        kept = _read_meta(home)
        if kept is not None and _is_current(kept, plan, inputs):
            return "kept", kept
        prepared = await prepare(build_work(plan, pair.name, files))
        meta = _describe(pair, plan, prepared, inputs)
        await asyncio.to_thread(_write_sample, home, plan, meta, prepared, files.get("target"))
    except RequestError as exc:
        _clear_sample(home)  # from another version of the pair: no longer true
        return "skipped", Skipped(
            name=pair.name, code=exc.code, reason=exc.detail, remedy=exc.remedy
        )
    return "written", meta


def _read_files(pair: Pair) -> dict[str, bytes]:
    try:
        return {role: path.read_bytes() for role, path in pair.files.items()}
    except OSError as exc:
        raise InvalidImage(f"{exc.filename}: {exc.strerror}") from exc


def build_work(plan: Plan, name: str, files: Mapping[str, bytes]) -> TryOnWork:
    """The pair as a request would ask for it."""
    bundle = plan.bundle
    return TryOnWork(
        options=TryOnOptions(
            expert=bundle.expert,
            version=bundle.version,
            quality=plan.quality,
            mask_convention=plan.mask_convention,
        ),
        person=files["person"],
        product=files["product"],
        mask=files.get("mask"),
        request_id=name,
        timeout_s=PAIR_TIMEOUT_S,
    )


def _read_meta(home: Path) -> SampleMeta | None:
    try:
        return SampleMeta.model_validate_json((home / "meta.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def _is_current(meta: SampleMeta, plan: Plan, inputs: Mapping[str, str]) -> bool:
    # meta.json is written last, so what it speaks of was complete.
    return (
        meta.bundle_sha256 == plan.bundle.fingerprint
        and meta.made_by == plan.made_by
        and meta.inputs == inputs
        and meta.num_steps == plan.bundle.num_steps(plan.quality)
    )


def _describe(pair: Pair, plan: Plan, prepared: Prepared, inputs: dict[str, str]) -> SampleMeta:
    bundle, crop, request = plan.bundle, prepared.crop, prepared.crop.request
    segmented = prepared.region.segmented
    prompt, negative_prompt = read_prompts(bundle)
    return SampleMeta(
        name=pair.name,
        version=bundle.version,
        bundle_sha256=bundle.fingerprint,
        made_by=plan.made_by,
        inputs=inputs,
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=request.seed,
        num_steps=request.num_steps,
        guidance=request.guidance,
        masker="caller" if segmented is None else segmented.masker,
        crop_box=crop.plan.box,
        crop_size=(crop.plan.crop_w_px, crop.plan.crop_h_px),
        region_box=crop.region_box,
        product_size=(request.product_hwc.shape[1], request.product_hwc.shape[0]),
        affine=invert_plan(crop.plan),
        landmarks=SampleLandmarks.of(request.landmarks),
        person=digest_of(prepared.inputs.person),
        product=prepared.inputs.product.digest,
        has_silhouette=request.silhouette_hw is not None,
        has_target="target" in inputs,
    )


def read_prompts(bundle: Bundle) -> tuple[str, str]:
    """Prompt and negative prompt of every request; empty for a backend that takes no words."""
    backend = bundle.backend
    if isinstance(backend, Diffusion):
        return backend.prompt.text, backend.prompt.negative
    return (backend.prompt, "") if isinstance(backend, HostedConfig) else ("", "")


def _write_sample(
    home: Path, plan: Plan, meta: SampleMeta, prepared: Prepared, target: bytes | None
) -> None:
    target_crop = None
    if target is not None:
        image, crop, person = decode_image(target, plan.limits), prepared.crop, meta.person
        if (image.width, image.height) != (person.width, person.height):
            raise InvalidImage(
                f"target is {image.width}x{image.height}, person {person.width}x{person.height}",
                remedy="the target shows the very picture of the person, with the product on",
            )
        target_crop = extract_crop(crop_to_srgb(image, crop.plan.box), crop.plan)
    _clear_sample(home)
    home.mkdir(parents=True, exist_ok=True)
    write_request(home, prepared.crop.request)
    if target_crop is not None:
        write_png(home / "target_crop.png", target_crop)
    (home / "meta.json").write_text(meta.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _clear_sample(home: Path) -> None:
    """Remove what an earlier run wrote for this pair, and nothing else."""
    for name in ("meta.json", "target_crop.png", *REQUEST_FILES):
        (home / name).unlink(missing_ok=True)
    if home.is_dir() and not any(home.iterdir()):
        home.rmdir()


def write_manifest(
    out_dir: Path, plan: Plan, outcomes: Sequence[Outcome], skipped: Sequence[Skipped]
) -> tuple[Manifest, list[SampleMeta]]:
    """Say on top of everything what is in the set and what is not."""
    metas = [what for _, what in outcomes if isinstance(what, SampleMeta)]
    refused = [what for _, what in outcomes if isinstance(what, Skipped)]
    manifest = Manifest(
        version=plan.bundle.version,
        bundle_sha256=plan.bundle.fingerprint,
        made_by=plan.made_by,
        num_written=sum(kind == "written" for kind, _ in outcomes),
        num_kept=sum(kind == "kept" for kind, _ in outcomes),
        samples=tuple(meta.name for meta in metas),
        skipped=tuple(sorted([*skipped, *refused], key=lambda skip: skip.name)),
        bundle=json.loads(plan.bundle.model_dump_json()),
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    text = manifest.model_dump_json(indent=2) + "\n"
    (out_dir / "manifest.json").write_text(text, encoding="utf-8")
    return manifest, metas
