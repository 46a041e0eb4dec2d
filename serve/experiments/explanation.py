"""Who would get which arm, and why not: the reasons behind `assign`, for people; pure."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from serve.designs import ExperimentDesign
from serve.experiments.assignment import (
    LiveExperiment,
    Party,
    assign,
    bucket_of,
    find_arm,
    hash_unit,
    is_covered,
    may_use_all,
    unit_of,
)
from serve.policy import TenantPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What an experiment would do with a party."""

    arm: str | None = None
    """None where it takes no part."""
    reason: str = ""
    """Why it takes no part."""
    unit: str | None = None
    bucket: int | None = None
    """Of 10,000, by which the allocation says whose the unit is."""

    @property
    def unit_hash(self) -> str | None:
        return None if self.unit is None else hash_unit(self.unit)


def explain(
    experiment: LiveExperiment,
    party: Party,
    policy: TenantPolicy,
    *,
    deployed: Collection[str],
    earlier: Iterable[LiveExperiment] = (),
) -> Explanation:
    """
    Args:
        deployed: every version there is.
        earlier: live experiments of the same expert that are asked before this one.
    """
    design = experiment.design
    reason = _find_obstacle(design, party, policy, deployed)
    if reason:
        return Explanation(reason=reason)
    unit = unit_of(design, party)
    if unit is None:
        kinds = design.unit if design.fallback is None else f"{design.unit} nor {design.fallback}"
        return Explanation(reason=f"the request names no {kinds}")
    reason = _find_closed_door(experiment, unit) or _find_earlier(party, policy, deployed, earlier)
    return Explanation(
        arm=None if reason else find_arm(experiment, unit),
        reason=reason,
        unit=unit,
        bucket=bucket_of("arm", design.id, design.salt, unit),
    )


def find_missing(design: ExperimentDesign, deployed: Collection[str]) -> list[str]:
    """Arms' versions that are not deployed."""
    return [arm.version for arm in design.arms if arm.version not in deployed]


def _find_obstacle(
    design: ExperimentDesign, party: Party, policy: TenantPolicy, deployed: Collection[str]
) -> str:
    missing = find_missing(design, deployed)
    if missing:
        return f"not deployed: {', '.join(missing)}"
    if not design.audience.admits(party.tenant_id, party.key_id):
        return "the audience leaves out this tenant or key"
    if not may_use_all(design, policy):
        return "the tenant may not use the version of every arm"
    return ""


def _find_closed_door(experiment: LiveExperiment, unit: str) -> str:
    if is_covered(experiment, unit):
        return ""
    space = experiment.design.namespace
    if space is not None:
        bucket = bucket_of("namespace", space.name, "", unit)
        if not space.start <= bucket < space.end:
            return (
                f"bucket {bucket} of the namespace {space.name!r} is not among its own, "
                f"{space.start} to {space.end}"
            )
    return f"the unit is outside the {experiment.design.coverage / 100:g} % that are covered"


def _find_earlier(
    party: Party,
    policy: TenantPolicy,
    deployed: Collection[str],
    earlier: Iterable[LiveExperiment],
) -> str:
    for other in earlier:
        is_whole = not find_missing(other.design, deployed)
        if is_whole and assign(other, party, policy) is not None:
            return f"{other.design.id} began earlier and takes it"
    return ""
