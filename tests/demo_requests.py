"""What an expert is asked for the demo's pictures, prepared by the real steps."""

import hashlib

from deployments.bundle import load_bundle
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.registry import create_segmenter
from serve.demo.cases import demo_cases
from serve.imaging.limits import ImageLimits
from serve.inputs import Inputs, decode_person, decode_product, digest_of
from serve.messages import ExpertRequest, Landmarks, SegmentReply, SegmentRequest
from serve.remembering import ProductCopy
from serve.schemas.tryon import TryOnOptions
from serve.settings import CONFIGS_DIR
from serve.steps import Region, TryOnWork, plan_work


def build_request(expert: str, seed: int = 7) -> ExpertRequest:
    """Of the shipped version; not for `face`, whose product has landmarks of its own."""
    case = next(case for case in demo_cases() if case.expert == expert)
    bundle = load_bundle(CONFIGS_DIR / f"experts/{expert}.1.yaml")
    person, product = case.person_path.read_bytes(), case.product_path.read_bytes()
    limits = ImageLimits()
    person_image, copy_hwc, _ = decode_person(person, limits, has_mask=False)
    product_image, product_rgba = decode_product(product, limits, bundle.product)
    product_copy = ProductCopy(digest_of(product_image), product_rgba)
    assert copy_hwc is not None
    segmenter = create_segmenter(bundle.masker, SegmenterPlan(2**26, bundle.home))
    segmenter.load()
    content_hash = hashlib.sha256(person).hexdigest()
    (segmented,) = segmenter.segment([SegmentRequest(copy_hwc, case.expert, content_hash)])
    assert isinstance(segmented, SegmentReply)
    work = TryOnWork(
        options=TryOnOptions(expert=case.expert),
        person=person,
        product=product,
        mask=None,
        request_id="tr_demo",
        timeout_s=60,
    )
    inputs = Inputs(person_image, product_copy, copy_hwc, None)
    region = Region(segmented.region_hw, segmented)
    return plan_work(work, bundle, inputs, region, Landmarks(), seed, 0.0).request
