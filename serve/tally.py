"""What the counts are told of a try-on: its series, and what it took."""

from serve.catalog import Choice
from serve.errors import Sm4llError
from serve.observing.tryons import NO_VERSION, TryOn, TryOns
from serve.observing.watch import Stopwatch
from serve.steps import TryOnResult, TryOnWork


def tell_end(
    tryons: TryOns,
    work: TryOnWork,
    choice: Choice | None,
    end: TryOnResult | Sm4llError | None,
    *,
    is_wrong: bool,
) -> None:
    """Once for each try-on, with its result or why there is none.

    Args:
        is_wrong: a lossless answer differed outside the region.
    """
    tryon = _name(work, NO_VERSION if choice is None else choice.bundle.version)
    if is_wrong:
        tryons.withheld(tryon)
    if isinstance(end, Sm4llError):
        tryons.failed(tryon, end.code)
    elif end is not None:
        microusd = end.upstream_microusd
        tryons.delivered(
            tryon,
            images=end.num_images,
            gpu_s=end.gpu_ms / 1e3,
            upstream_usd=None if microusd is None else microusd / 1e6,
        )


def tell_answer(tryons: TryOns, work: TryOnWork, result: TryOnResult, watch: Stopwatch) -> None:
    """When whoever waited for it has it."""
    tryons.answered(_name(work, result.receipt.version), watch.total_ms, watch.stages_ms)


def _name(work: TryOnWork, version: str) -> TryOn:
    return TryOn(
        expert=work.options.expert,
        version=version,
        # Of a job somebody else holds the reservation.
        way="job" if work.account is None else "request",
        tenant_id=work.share.tenant,
    )
