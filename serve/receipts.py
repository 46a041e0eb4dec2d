"""Writes the receipt of an answer: enough to make it again."""

import secrets
from dataclasses import asdict
from typing import Any

from serve.catalog import Choice
from serve.imaging.encode import LOSSLESS
from serve.imaging.region import CropPlan
from serve.inputs import Inputs, digest_of
from serve.messages import ExpertReply
from serve.observing.watch import Stopwatch
from serve.schemas.receipt import (
    Affine,
    Format,
    InputDigest,
    OutsideReport,
    Receipt,
    Upstream,
    Usage,
)
from serve.steps import Answer, CropWork, Region, TryOnWork, measure_gpu_ms


def tryon_receipt(
    work: TryOnWork,
    choice: Choice,
    inputs: Inputs,
    region: Region,
    crop: CropWork,
    reply: ExpertReply,
    answers: list[Answer],
    watch: Stopwatch,
) -> Receipt:
    """The receipt of a finished try-on."""
    plan = crop.plan
    worst = max(answer.proof.max_abs_diff for answer in answers)
    image_format = answers[0].format
    return Receipt(
        **_common(work, choice, reply, watch),
        masker=region.masker,
        segmentation_cached=region.is_cached,
        product_cached=inputs.is_product_known
        if reply.product_cached is None
        else reply.product_cached,
        seed=crop.request.seed,
        num_steps=crop.request.num_steps,
        format=image_format,
        person=digest_of(inputs.person),
        product=inputs.product.digest,
        mask=_mask_digest(inputs),
        region_box=crop.region_box,
        crop_box=plan.box,
        crop_size=(plan.crop_w_px, plan.crop_h_px),
        affine=invert_plan(plan),
        outside=OutsideReport(max_abs_diff=worst, lossless=image_format in LOSSLESS),
        notes=reply.notes,
    )


def invert_plan(plan: CropPlan) -> Affine:
    """From crop pixels back to the person's picture."""
    left, top = plan.origin
    to_crop_x, to_crop_y = plan.scale
    return Affine(scale_x=1 / to_crop_x, scale_y=1 / to_crop_y, left=left, top=top)


def passthrough_receipt(
    work: TryOnWork, choice: Choice, reply: ExpertReply, watch: Stopwatch
) -> Receipt:
    """The receipt of bytes that went through a no-op expert unread."""
    unread = InputDigest(sha256="", width=0, height=0, format="unread")
    image_format: Format = work.options.format or "jpeg"
    return Receipt(
        **_common(work, choice, reply, watch),
        masker="caller",
        segmentation_cached=False,
        seed=0,
        num_steps=1,
        format=image_format,
        person=unread,
        product=unread,
        mask=None,
        region_box=None,
        crop_box=None,
        crop_size=None,
        affine=None,
        outside=OutsideReport(max_abs_diff=0, lossless=True),
    )


def _common(
    work: TryOnWork, choice: Choice, reply: ExpertReply, watch: Stopwatch
) -> dict[str, Any]:
    bundle = choice.bundle
    return {
        "id": _answer_id(work),
        "request_id": work.request_id,
        "expert": bundle.expert,
        "version": bundle.version,
        "bundle_sha256": bundle.fingerprint,
        "backend": bundle.backend.kind,
        "preview": bundle.is_preview,
        "licence": bundle.licence.name,
        "commercial_use": bundle.licence.commercial_use,
        "arm": choice.arm,
        "experiment": None if choice.assignment is None else choice.assignment.experiment,
        "quality": work.options.quality,
        "batch_size": reply.batch_size,
        "batch_id": reply.batch_id,
        "batch_index": reply.batch_index,
        "blend": work.options.blend,
        "timings_ms": {**watch.stages_ms, "total": watch.total_ms},
        "usage": Usage(gpu_s=measure_gpu_ms(reply) / 1e3, images=work.options.num_images),
        "upstream": None if reply.cost is None else Upstream(**asdict(reply.cost)),
    }


def _answer_id(work: TryOnWork) -> str:
    """The ledger's name of the work, so that an answer's charge is found by the answer."""
    if work.account is not None and work.account.work_item.startswith("tr_"):
        return work.account.work_item
    return f"tr_{secrets.token_hex(12)}"


def _mask_digest(inputs: Inputs) -> InputDigest | None:
    if inputs.mask_sha256 is None:
        return None
    width, height = inputs.person.width, inputs.person.height
    return InputDigest(sha256=inputs.mask_sha256, width=width, height=height, format="mask")
