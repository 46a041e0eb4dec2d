"""How many jobs of each version one runner may have at the routers at once; pure."""

from collections import Counter
from collections.abc import Mapping

from deployments.bundle import Bundle
from deployments.options import group_experts, max_ongoing_requests
from serve.config import FamilyConfig, VersionId

# What decodes and segments, or pastes and encodes, beside what is at the expert.
PER_PLACE = 2


class Windows:
    """Versions on the same replicas share a window."""

    def __init__(self, group_of: Mapping[VersionId, str], sizes: Mapping[str, int], in_all: int):
        self._group_of = dict(group_of)
        self._sizes = dict(sizes)
        self._in_all = in_all
        self._used: Counter[str] = Counter()
        self._num_used = 0

    @property
    def num_free(self) -> int:
        """Of all versions together."""
        return self._in_all - self._num_used

    def list_full(self) -> list[VersionId]:
        """Versions of which no job may be claimed now."""
        full = {name for name, size in self._sizes.items() if self._used[name] >= size}
        return [version for version, name in self._group_of.items() if name in full]

    def enter(self, version: VersionId) -> None:
        self._used[self._group_of.get(version, version)] += 1
        self._num_used += 1

    def leave(self, version: VersionId) -> None:
        self._used[self._group_of.get(version, version)] -= 1
        self._num_used -= 1


def plan_windows(family: FamilyConfig, bundles: Mapping[VersionId, Bundle]) -> Windows:
    """Enough to keep every replica there may be busy, shared by all runners."""
    group_of: dict[VersionId, str] = {}
    sizes: dict[str, int] = {}
    for group in group_experts(family, bundles):
        num_places = group.deployed.autoscaling.max_replicas * max_ongoing_requests(group)
        sizes[group.name] = max(1, PER_PLACE * num_places // family.jobs.runners)
        group_of.update({bundle.version: group.name for bundle in group.bundles})
    return Windows(group_of, sizes, family.jobs.max_in_flight)
