"""The pipeline in this process, without Ray and without an expert: for commands about versions."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from deployments.bundle import Bundle
from deployments.segmenters.base import Segmenter, SegmenterPlan
from deployments.segmenters.registry import create_segmenter
from serve.admission.gate import Gate
from serve.catalog import Catalog
from serve.demo.cases import demo_cases
from serve.errors import RequestError, Sm4llError, SubjectNotFound
from serve.imaging.limits import ImageLimits
from serve.messages import Expert, ExpertRequest, SegmentReply, SegmentRequest
from serve.observing.watch import Stopwatch
from serve.pairs import Pair
from serve.pipeline import Pipeline
from serve.prepare import Plan, build_work, name_maker
from serve.schemas.receipt import Quality
from serve.schemas.tryon import MaskConvention
from serve.steps import Prepared, TryOnWork


@dataclass(frozen=True, slots=True)
class Offline:
    """Prepares requests of one version by the very code that serves them."""

    plan: Plan
    pipeline: Pipeline

    async def prepare(self, work: TryOnWork) -> Prepared:
        return await self.pipeline.prepare(work, self.plan.bundle, Stopwatch())


def build_offline(
    catalog: Catalog,
    bundle: Bundle,
    *,
    num_threads: int,
    quality: Quality = "normal",
    mask_convention: MaskConvention = "white_edits",
) -> Offline:
    """Load the version's masker and put the pipeline around it."""
    family = catalog.family
    cache_bytes = family.segmenter.cache_mib * 2**20
    segmenter = create_segmenter(
        bundle.masker, SegmenterPlan(cache_bytes, bundle.home, family.weights)
    )
    segmenter.load()
    limits = ImageLimits(
        max_bytes=family.router.max_image_mib * 2**20,
        max_pixels=family.router.max_megapixels * 1_000_000,
        max_side_px=family.router.max_side_px,
    )
    pipeline = Pipeline(
        catalog=catalog,
        segment=_SegmentHere(segmenter),
        experts={},
        gate=Gate({}),  # nothing is painted here
        threads=ThreadPoolExecutor(num_threads, thread_name_prefix="imaging"),
        limits=limits,
    )
    plan = Plan(bundle, name_maker(segmenter.name), limits, quality, mask_convention)
    return Offline(plan, pipeline)


class _SegmentHere:
    """Asks a segmenter of this process, from one thread at a time."""

    def __init__(self, segmenter: Segmenter):
        self._segmenter = segmenter
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="segmenter")

    async def __call__(self, request: SegmentRequest, /) -> SegmentReply:
        loop = asyncio.get_running_loop()
        segment: Callable[[list[SegmentRequest]], list[SegmentReply | Sm4llError]]
        segment = self._segmenter.segment
        (outcome,) = await loop.run_in_executor(self._thread, segment, [request])
        if isinstance(outcome, Sm4llError):
            raise outcome
        return outcome


def demo_pairs(expert: Expert) -> list[Pair]:
    """The expert's bundled product on every bundled person, the one of its demo first."""
    cases = {case.expert: case for case in demo_cases()}
    own = cases[expert]
    persons = dict.fromkeys([own.person_path, *(case.person_path for case in cases.values())])
    return [
        Pair(person.stem, {"person": person, "product": own.product_path}) for person in persons
    ]


async def build_requests(
    offline: Offline, pairs: Sequence[Pair], num_requests: int
) -> dict[str, ExpertRequest]:
    """So many requests of pairs in which the expert finds what it needs, by the pair's name.

    Fewer pairs than requests: the same ones once more with the next seed.

    Raises:
        SubjectNotFound: it finds it in none.
    """
    requests: dict[str, ExpertRequest] = {}
    reasons = []
    for pair in pairs:
        if len(requests) == num_requests:
            break
        files = {role: path.read_bytes() for role, path in pair.files.items()}
        try:
            prepared = await offline.prepare(build_work(offline.plan, pair.name, files))
        except RequestError as exc:
            reasons.append(f"{pair.name}: {exc.detail}")
        else:
            requests[pair.name] = prepared.crop.request
    if not requests:
        raise SubjectNotFound(
            f"no pair can be used: {'; '.join(reasons)}", remedy="bring others with --pairs"
        )
    first = list(requests.items())
    for index in range(num_requests - len(first)):
        name, request = first[index % len(first)]
        seed = (request.seed + 1 + index) % 2**32
        requests[f"{name}-{seed}"] = replace(request, seed=seed)
    return requests
