"""Exposures for tests, as reports read them."""

from dataclasses import replace
from itertools import count
from typing import Any

from serve.store.exposures import Seen
from tests.stores import START

_numbers = count(1)
_USUAL = Seen(
    tenant_id="acme",
    id="",
    is_shadow=False,
    revision=1,
    arm="control",
    unit="u",
    request_id="",
    category="",
    tags={},
    code="",
    is_failure=False,
    latency_ms=1_000.0,
    gpu_ms=400,
    upstream_microusd=None,
    metrics={},
    pictures=None,
    at=START,
    verdicts=frozenset(),
)


def expose(**named: Any) -> Seen:
    """One exposure with an id of its own where none is named."""
    exposure_id = named.pop("id", None) or f"tr_{next(_numbers)}"
    return replace(_USUAL, id=exposure_id, request_id=f"req-{exposure_id}", **named)


def failed(**named: Any) -> Seen:
    """One that the version failed."""
    return expose(code="generation_failed", is_failure=True, gpu_ms=0, **named)
