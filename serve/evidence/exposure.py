"""What a sighting leaves behind, apart from what its picture has to be measured for; pure."""

import secrets
from collections.abc import Mapping
from datetime import datetime

from serve.errors import (
    BackendError,
    ContentRefused,
    DeadlineExceeded,
    MaskRejected,
    NotSupported,
    Overloaded,
    Sm4llError,
    SubjectNotFound,
)
from serve.steps import Sighting, TryOnWork, measure_gpu_ms
from serve.store.exposures import NewExposure

MAY_BE_ITS_FAULT = (
    *(BackendError, Overloaded, DeadlineExceeded),
    # A version brings its own masker, and says itself what it can do; a third party refuses what
    # another paints.
    *(SubjectNotFound, MaskRejected, ContentRefused, NotSupported),
)


def describe_exposure(
    sighting: Sighting, at: datetime, usd_per_gpu_second: float | None = None
) -> NewExposure:
    """The row, with those metrics that are known without looking at the picture.

    Args:
        sighting: whose choice has an assignment.
        usd_per_gpu_second: what passes in this cluster cost; None where nobody says.
    """
    work, error = sighting.work, sighting.error
    assignment = sighting.choice.assignment
    assert assignment is not None
    exposure_id, request_id = name_exposure(sighting)
    crop = None if sighting.prepared is None else sighting.prepared.crop
    return NewExposure(
        tenant_id=work.share.tenant,
        id=exposure_id,
        experiment_id=assignment.experiment,
        revision=assignment.revision,
        arm=assignment.arm,
        version=assignment.version,
        unit=assignment.unit,
        request_id=request_id,
        category=work.options.category or "",
        tags=work.options.tags,
        code="" if error is None else error.code,
        is_failure=error is not None and is_failure(error, work),
        latency_ms=sighting.latency_ms,
        gpu_ms=0 if sighting.reply is None else measure_gpu_ms(sighting.reply),
        upstream_microusd=_upstream_microusd(sighting),
        seed=None if crop is None else crop.request.seed,
        metrics={**_measure_outside(sighting), **_measure_cost(sighting, usd_per_gpu_second)},
        at=at,
    )


def name_exposure(sighting: Sighting) -> tuple[str, str]:
    """The id of the row, and what else outcomes may call it.

    All attempts at a job are one row: it has the job's id, and the answer's as its other name. Of
    a synchronous request each attempt is seen by its caller, and is a row: it has the answer's id,
    or one of its own where there is none.
    """
    work = sighting.work
    answer_id = None if sighting.result is None else sighting.result.receipt.id
    if work.account is None:  # somebody else holds the reservation: it is a job
        return work.request_id, answer_id or work.request_id
    return answer_id or f"tr_{secrets.token_hex(12)}", work.request_id


def is_failure(error: Sm4llError, work: TryOnWork) -> bool:
    """Whether it may be the version's fault: no mistake of the caller's, no limit of a tenant's, no
    caller who left, no database that is away."""
    if isinstance(error, MaskRejected):
        return work.mask is None
    # The base itself stands for what nobody has foreseen.
    return isinstance(error, MAY_BE_ITS_FAULT) or type(error) is Sm4llError


def _upstream_microusd(sighting: Sighting) -> int | None:
    cost = None if sighting.reply is None else sighting.reply.cost
    return None if cost is None else round(cost.usd * 1e6)


def _measure_outside(sighting: Sighting) -> Mapping[str, float]:
    """Of lossless files only: in others the number says what the format did."""
    if sighting.result is None or sighting.prepared is None:
        return {}
    outside = sighting.result.receipt.outside
    return {"outside": float(outside.max_abs_diff)} if outside.lossless else {}


def _measure_cost(sighting: Sighting, usd_per_gpu_second: float | None) -> Mapping[str, float]:
    """What a third party charged, or what the passes of our own took."""
    if sighting.error is not None or sighting.reply is None:
        return {}
    if sighting.reply.cost is not None:
        return {"cost_usd": sighting.reply.cost.usd}
    if usd_per_gpu_second is None:
        return {}
    return {"cost_usd": measure_gpu_ms(sighting.reply) / 1e3 * usd_per_gpu_second}
