"""The product in one process: the real pipeline, segmenter and backends, with Ray left out."""

import asyncio
import logging
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastapi import FastAPI

from deployments.bundle import Bundle, load_family
from deployments.expert import ExpertReplica
from deployments.options import group_experts
from deployments.segmenters.base import Segmenter, SegmenterPlan
from deployments.segmenters.registry import create_segmenter
from serve.api.app import build_api
from serve.api.models import State
from serve.api.pictures import FetchPicture
from serve.catalog import Catalog
from serve.config import ReplicaPlan
from serve.errors import Sm4llError
from serve.imaging.limits import ImageLimits
from serve.messages import SegmentReply, SegmentRequest
from serve.permits import build_gate
from serve.pipeline import Pipeline
from tests.loopback_web import refusing_fetcher
from tests.tenants import KeyAdded, open_local_services


def load_segmenters(bundles: Iterable[Bundle]) -> dict[str, Segmenter]:
    """One segmenter per masker that the bundles name, as the graph deploys them."""
    segmenters = {}
    for bundle in bundles:
        if bundle.masker.id not in segmenters:
            segmenter = create_segmenter(bundle.masker, SegmenterPlan(2**26, bundle.home))
            segmenter.load()
            segmenters[bundle.masker.id] = segmenter
    return segmenters


def build_local_api(
    family_file: Path,
    timeout_s: float | None = None,
    waiting_for: tuple[str, ...] = (),
    fetch: FetchPicture | None = None,
    *,
    is_key_added: bool = True,
) -> FastAPI:
    """The API as the router builds it, on direct calls instead of handles.

    It has a store of its own (`tests.tenants.open_local_services`): `api.state.services` and
    `api.state.settings`.

    Args:
        is_key_added: requests without a key get that of tenant `local`.
    """
    family, bundles = load_family(family_file)
    if timeout_s is not None:
        router = family.router.model_copy(update={"default_timeout_s": timeout_s})
        family = family.model_copy(update={"router": router})
    catalog = Catalog(family, bundles)
    segmenters = load_segmenters(bundles.values())
    replicas: dict[str, ExpertReplica] = {}
    for group in group_experts(family, bundles):
        replica = ExpertReplica(group.bundles, ReplicaPlan(name=group.name))
        replicas.update({bundle.version: replica for bundle in group.bundles})

    async def segment(request: SegmentRequest) -> SegmentReply:
        found = segmenters[request.masker].segment
        (outcome,) = await asyncio.to_thread(found, [request])
        if isinstance(outcome, Sm4llError):
            raise outcome
        return outcome

    async def read_states() -> Mapping[str, State]:
        return {version: "ready" for version in bundles}

    async def read_waiting() -> tuple[str, ...]:
        return waiting_for

    limits = ImageLimits()
    pipeline = Pipeline(
        catalog=catalog,
        segment=segment,
        experts={version: replica.generate for version, replica in replicas.items()},
        gate=build_gate(family, bundles),
        threads=ThreadPoolExecutor(2),
        limits=limits,
    )
    folder = tempfile.TemporaryDirectory(prefix="sm4ll-api-")
    services, settings = open_local_services(Path(folder.name))
    api = build_api(
        catalog,
        pipeline,
        limits,
        fetch or refusing_fetcher(),
        read_states,
        read_waiting,
        logging.getLogger("tests"),
        services=services,
    )
    api.state.services, api.state.settings = services, settings
    api.state.folder = folder  # goes when the API goes
    if is_key_added:
        api.add_middleware(KeyAdded)
    return api
