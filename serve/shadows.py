"""The shadows of one router, put together from its own parts."""

from collections.abc import Mapping
from functools import partial

from serve.admission.gate import Gate
from serve.catalog import Catalog
from serve.errors import NotFound
from serve.evidence.background import open_background_thread
from serve.evidence.repainting import Repainter
from serve.evidence.shadow import ShadowRunner
from serve.imaging.limits import ImageLimits
from serve.pipeline import ExpertCaller, Pipeline
from serve.preparing import SegmentCaller
from serve.remembering import PictureMemory
from serve.services import Services
from serve.steps import TryOnWork
from serve.store.engine import Database
from serve.store.jobs import get_job


def open_shadows(
    *,
    catalog: Catalog,
    segment: SegmentCaller,
    experts: Mapping[str, ExpertCaller],
    gate: Gate,
    limits: ImageLimits,
    services: Services,
    memory: PictureMemory | None = None,
) -> ShadowRunner:
    """A witness for the router's pipeline; follows the experiments as they change.

    Args:
        experts: the mapping that the pipeline has, in which versions come and go.
        memory: the one that the pipeline has.
    """
    thread = open_background_thread("shadows")
    # Of its own, so that its pictures never wait in front of those of somebody who waits.
    pipeline = Pipeline(
        catalog=catalog,
        segment=segment,
        experts=experts,
        gate=gate,
        threads=thread,
        limits=limits,
        memory=memory,
    )
    runner = ShadowRunner(
        catalog=catalog,
        repainter=Repainter(
            gate=gate,
            experts=experts,
            prepare=pipeline.prepare,
            threads=thread,
            assets=services.assets,
            is_erased=partial(_is_erased, services.database),
        ),
        book=services.recorder,
    )
    services.routing.on_change(runner.follow)
    services.users.append(runner.close)
    return runner


async def _is_erased(database: Database, work: TryOnWork) -> bool:
    """A job goes first, before the pictures of its subject do (`tenancy.erasure`)."""
    try:
        async with database.reading() as session:
            await get_job(session, work.share.tenant, work.request_id)
    except NotFound:
        return True
    return False
