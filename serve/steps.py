"""The steps of one try-on that compute: what goes in and out of each, run on imaging threads."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np

from deployments.bundle import Bundle
from serve.admission.ticket import LOCAL_SHARE, Share
from serve.catalog import Choice
from serve.errors import GenerationFailed, Sm4llError
from serve.experiments.assignment import Party
from serve.imaging.blend import choose_feather_px
from serve.imaging.colour import crop_to_srgb
from serve.imaging.decode import DecodedImage
from serve.imaging.encode import LOSSLESS, encode_image
from serve.imaging.layers import build_product_layer, build_region_map, pack_layers
from serve.imaging.paste import Overlay, paste_back
from serve.imaging.proof import OutsideProof, prove_outside
from serve.imaging.region import (
    CropPlan,
    CropPolicy,
    cut_copy_to_crop,
    extract_crop,
    plan_crop,
    shrink_region,
    upscale_region,
)
from serve.imaging.room import drop_pixels, restore_pixels
from serve.imaging.spool import Encoded
from serve.inputs import Inputs
from serve.messages import ExpertReply, ExpertRequest, Landmarks, SegmentReply, UInt8Array
from serve.observing.watch import Stopwatch
from serve.policy import TenantPolicy
from serve.schemas.receipt import Format, Receipt
from serve.schemas.tryon import TryOnOptions
from serve.tenancy.account import Account
from serve.tenancy.memory import remembered_as


class Progress(Protocol):
    """Is told how far a try-on is, from the event loop; must not block."""

    def on_step(self, step: int, num_steps: int, /) -> None: ...

    def on_painted(self, images_nhwc: UInt8Array, /) -> None:
        """The expert has answered; pasting, encoding and the proof are still to come."""


@dataclass(frozen=True, slots=True)
class TryOnWork:
    """What one request asks for."""

    options: TryOnOptions
    person: Encoded
    product: Encoded
    mask: Encoded | None
    request_id: str
    timeout_s: float
    share: Share = LOCAL_SHARE
    """On whose account it waits for an expert."""
    policy: TenantPolicy = TenantPolicy()
    """Which versions it may get; all of them where one was chosen when it was accepted."""
    progress: Progress | None = None
    """Who follows it step by step; a synchronous caller does not."""
    party: Party | None = None
    """Whom experiments may ask about; nobody takes part without one."""
    choice: Choice | None = None
    """Where the version was chosen before, as a job's is when it is accepted."""
    subject: str = ""
    """Whose pictures these are, where the caller said so: what is kept of them goes with them."""
    account: Account | None = None
    """Who pays; nobody where somebody else holds the reservation, as a job's runner does."""


@dataclass(frozen=True, slots=True)
class TryOnResult:
    """One answer: its files and how they came to be."""

    files: tuple[bytes, ...]
    media_type: str
    receipt: Receipt
    width: int
    height: int
    layers: bytes | None
    """The zip, when it was asked for."""
    gpu_ms: int = 0
    """This request's share of the pass that painted it, as it is charged."""

    @property
    def num_images(self) -> int:
        return len(self.files)

    @property
    def upstream_microusd(self) -> int | None:
        """What a third party charged for it."""
        upstream = self.receipt.upstream
        return None if upstream is None else round(upstream.usd * 1e6)


@dataclass(frozen=True, slots=True)
class Region:
    """Where the picture may change, before it is cut to the crop."""

    region_hw: UInt8Array
    """At the copy's size, or the original's when the caller brought a mask."""
    segmented: SegmentReply | None
    """None when the caller brought a mask."""

    @property
    def masker(self) -> str:
        return "caller" if self.segmented is None else self.segmented.masker

    @property
    def is_cached(self) -> bool:
        return self.segmented is not None and self.segmented.cached


@dataclass(frozen=True, slots=True)
class CropWork:
    """The crop, the region promised at the original's size, and what the expert is asked."""

    plan: CropPlan
    region_box_hw: UInt8Array
    region_box: tuple[int, int, int, int]
    request: ExpertRequest


@dataclass(frozen=True, slots=True)
class Prepared:
    """All that is known before the expert is asked: the same to serve a request and to train."""

    inputs: Inputs
    region: Region
    crop: CropWork


@dataclass(frozen=True, slots=True)
class Answer:
    """One finished picture with its proof."""

    file: bytes
    format: Format
    overlay: Overlay | None
    """Where layers are asked for."""
    proof: OutsideProof

    @property
    def is_wrong(self) -> bool:
        """A lossless file that differs outside the region."""
        return self.proof.max_abs_diff > 0 and self.format in LOSSLESS


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """One request that took part in an experiment, when it has ended one way or the other."""

    work: TryOnWork
    choice: Choice
    """With an assignment."""
    latency_ms: float
    """From the first stage to the last, as the receipt's `total`."""
    error: Sm4llError | None = None
    """Why there is no result; `Cancelled` where the caller left."""
    result: TryOnResult | None = None
    prepared: Prepared | None = None
    """As far as it came."""
    reply: ExpertReply | None = None


class Witness(Protocol):
    """Is told of requests in experiments, on the event loop; must neither block nor raise."""

    def saw(self, sighting: Sighting, /) -> None: ...


def derive_seed(work: TryOnWork, bundle: Bundle, inputs: Inputs) -> int:
    """The caller's seed, or one that follows from the inputs: a repeat gives the same picture."""
    if work.options.seed is not None:
        return work.options.seed
    digest = hashlib.sha256(bundle.version.encode())
    for sha256 in (inputs.person.sha256, inputs.product.digest.sha256, inputs.mask_sha256):
        digest.update(hashlib.sha256(b"").digest() if sha256 is None else bytes.fromhex(sha256))
    return int.from_bytes(digest.digest()[:4], "big")


def plan_work(
    work: TryOnWork,
    bundle: Bundle,
    inputs: Inputs,
    region: Region,
    product_landmarks: Landmarks,
    seed: int,
    deadline_unix_s: float,
) -> CropWork:
    """Cut the crop and say what the expert shall do with it."""
    person = inputs.person
    policy = CropPolicy(
        context=bundle.crop.context,
        size_px=bundle.crop.size_px,
        multiple_of=bundle.crop.multiple_of,
        sizes=bundle.crop.sizes,
    )
    plan = plan_crop(region.region_hw, person.width, person.height, policy)
    region_box_hw = upscale_region(region.region_hw, plan)
    silhouette_hw, landmarks = _about_person(region, plan)
    request = ExpertRequest(
        request_id=work.request_id,
        version=bundle.version,
        crop_hwc=extract_crop(crop_to_srgb(person, plan.box), plan),
        region_hw=shrink_region(region_box_hw, plan),
        silhouette_hw=silhouette_hw,
        landmarks=landmarks,
        product_hwc=inputs.product.rgba,
        product_landmarks=product_landmarks,
        product_hash=remembered_as(work.share.tenant, inputs.product.digest.sha256),
        seed=seed,
        num_images=work.options.num_images,
        num_steps=bundle.num_steps(work.options.quality),
        guidance=bundle.guidance,
        deadline_unix_s=deadline_unix_s,
    )
    return CropWork(plan, region_box_hw, _bounds(region_box_hw, plan), request)


def _about_person(region: Region, plan: CropPlan) -> tuple[UInt8Array | None, Landmarks]:
    segmented = region.segmented
    if segmented is None:
        return None, Landmarks()
    copy_h_px, copy_w_px = segmented.silhouette_hw.shape
    scale, offset = plan.affine_from_copy(copy_w_px, copy_h_px)
    silhouette_hw = cut_copy_to_crop(segmented.silhouette_hw, plan)
    return silhouette_hw, segmented.landmarks.transformed(scale, offset)


def _bounds(region_box_hw: UInt8Array, plan: CropPlan) -> tuple[int, int, int, int]:
    x, y, width, height = cv2.boundingRect((region_box_hw > 0).astype(np.uint8))
    left, top = plan.box[0] + x, plan.box[1] + y
    return left, top, left + width, top + height


def drop_large(prepared: Prepared) -> Prepared:
    """What is still asked about when the expert paints, without what is as large as the picture."""
    inputs = replace(prepared.inputs, person=drop_pixels(prepared.inputs.person), mask_hw=None)
    shape = prepared.region.region_hw.shape
    region = replace(prepared.region, region_hw=np.broadcast_to(np.uint8(0), shape))
    return Prepared(inputs, region, prepared.crop)


def check_reply(reply: ExpertReply, request: ExpertRequest) -> None:
    """Refuse what does not fit the crop before it reaches the picture.

    Raises:
        GenerationFailed: wrong shape or type, or all black, as broken half-precision weights give.
    """
    wanted = (request.num_images, *request.crop_hwc.shape)
    images = reply.images_nhwc
    if images.shape != wanted or images.dtype != np.uint8:
        raise GenerationFailed(
            f"{reply.version} answered {images.dtype} {images.shape}, not uint8 {wanted}"
        )
    if not images.any() and request.crop_hwc.any():
        raise GenerationFailed(f"{reply.version} answered a black picture")


def measure_gpu_ms(reply: ExpertReply) -> int:
    """This request's share of its pass, in whole milliseconds."""
    return max(0, round(reply.generate_ms / max(1, reply.batch_size)))


def deliver(
    work: TryOnWork,
    bundle: Bundle,
    inputs: Inputs,
    crop: CropWork,
    reply: ExpertReply,
    index: int,
    watch: Stopwatch,
) -> Answer:
    """Paste one picture back, encode it, and prove the file; see `check_answers`."""
    person = inputs.person
    if not person.has_pixels:
        with watch.stage("decode"):
            person = restore_pixels(person, work.person)
    with watch.stage("paste"):
        pasted = paste_back(
            person,
            reply.images_nhwc[index],
            None if reply.alpha_nhw is None else reply.alpha_nhw[index],
            crop.plan,
            crop.region_box_hw,
            blend=work.options.blend,
            feather_px=choose_feather_px(crop.region_box_hw, bundle.blend.feather),
            colour_match=bundle.blend.colour_match,
        )
    image_format = _choose_format(work, person)
    with watch.stage("encode"):
        file = encode_image(
            pasted.pixels,
            pasted.alpha,
            format=image_format,
            icc_profile=person.icc_profile,
            bit_depth=person.bit_depth,
            exif=person.exif,
            may_overwrite=True,
        )
    overlay = pasted.overlay if work.options.output == "layers" else None
    del pasted  # before the answer is decoded: its copy of the picture goes first
    with watch.stage("prove"):
        proof = prove_outside(file, person, crop.region_box_hw, crop.plan.box)
    return Answer(file, image_format, overlay, proof)


def check_answers(answers: Sequence[Answer]) -> None:
    """
    Raises:
        GenerationFailed: a lossless file differs outside the region; nothing is delivered.
    """
    for answer in answers:
        if answer.is_wrong:
            raise GenerationFailed(
                f"the file differs by {answer.proof.max_abs_diff} levels outside the region: "
                "not delivered"
            )


def _choose_format(work: TryOnWork, person: DecodedImage) -> Format:
    if work.options.format is not None:
        return work.options.format
    # Nobody writes HEIC back: PNG keeps what it said.
    return "png" if person.format == "heic" else person.format


def pack(inputs: Inputs, crop: CropWork, answer: Answer, receipt: Receipt) -> bytes:
    """The zip of layers at the original's size."""
    assert answer.overlay is not None
    return pack_layers(
        answer.file,
        "jpg" if answer.format == "jpeg" else answer.format,
        build_product_layer(inputs.person, answer.overlay),
        build_region_map(inputs.person, crop.region_box_hw, crop.plan.box),
        receipt.model_dump_json(indent=2),
    )
