"""How many jobs of each version one runner may have at the routers at once; pure."""

from collections import Counter
from collections.abc import Iterable, Mapping

from deployments.bundle import Bundle
from deployments.options import ExpertGroup, group_experts, max_ongoing_requests
from serve.config import FamilyConfig, JobsConfig, VersionId

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
        self._added: frozenset[str] = frozenset()

    def follow(self, added: Iterable[ExpertGroup], jobs: JobsConfig) -> None:
        """Have windows for these groups besides the family's, and for no others of before."""
        groups = {group.name: group for group in added}
        for name in self._added - groups.keys():
            self._sizes.pop(name, None)
        self._group_of = {
            version: name for version, name in self._group_of.items() if name not in self._added
        }
        for name, group in groups.items():
            self._sizes[name] = size_window(group, jobs)
            self._group_of.update({bundle.version: name for bundle in group.bundles})
        self._added = frozenset(groups)

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
        sizes[group.name] = size_window(group, family.jobs)
        group_of.update({bundle.version: group.name for bundle in group.bundles})
    return Windows(group_of, sizes, family.jobs.max_in_flight)


def size_window(group: ExpertGroup, jobs: JobsConfig) -> int:
    """One runner's part."""
    num_places = group.deployed.autoscaling.max_replicas * max_ongoing_requests(group)
    return max(1, PER_PLACE * num_places // jobs.runners)
