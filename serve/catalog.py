"""Which expert versions there are, which ones a tenant may use, and which one is the default."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deployments.bundle import Bundle
from serve.config import FamilyConfig, VersionId
from serve.errors import Forbidden, NotFound
from serve.experiments.assignment import Assignment
from serve.messages import Expert
from serve.policy import TenantPolicy

UNLIMITED = TenantPolicy()


@dataclass(frozen=True, slots=True)
class Choice:
    """The version that serves one request, and why it is that one."""

    bundle: Bundle
    arm: str
    """Of the experiment; `explicit` where the caller named the version, `pinned` where its
    collection is, `default` otherwise."""
    assignment: Assignment | None = None
    """Where an experiment chose."""


class Catalog:
    """Every deployed version; the first one listed of an expert is its default, unless the cluster
    prefers another.

    Used from one event loop; whoever walks over it goes on seeing what there was.
    """

    def __init__(self, family: FamilyConfig, bundles: Mapping[VersionId, Bundle]):
        self.family = family
        self._bundles: Mapping[VersionId, Bundle] = dict(bundles)
        self._listed: dict[Expert, VersionId] = {}
        for deployed in family.experts:
            self._listed.setdefault(deployed.expert, deployed.version)
        self._preferred: Mapping[Expert, VersionId] = {}

    def __iter__(self) -> Iterator[Bundle]:
        return iter(self._bundles.values())

    def get(self, version: VersionId) -> Bundle | None:
        return self._bundles.get(version)

    def add(self, bundle: Bundle) -> None:
        """One that runs beside those of the family; the same again replaces it."""
        self._bundles = {**self._bundles, bundle.version: bundle}

    def remove(self, version: VersionId) -> None:
        """No new request gets it; one that is not there is gone already."""
        self._bundles = {name: one for name, one in self._bundles.items() if name != version}

    def prefer(self, defaults: Mapping[Expert, VersionId]) -> None:
        """The cluster's defaults, in place of those that were preferred before."""
        self._preferred = defaults

    def list_allowed(self, policy: TenantPolicy = UNLIMITED) -> tuple[Bundle, ...]:
        """What a tenant may use; the others do not exist as far as it is told."""
        return tuple(b for b in self if policy.allows(b.expert, b.version))

    def is_default(self, bundle: Bundle, policy: TenantPolicy = UNLIMITED) -> bool:
        default = self.find_default(bundle.expert, policy)
        return default is not None and default.version == bundle.version

    def choose(
        self, expert: Expert, version: str | None, policy: TenantPolicy = UNLIMITED
    ) -> Choice:
        """Pick the version for a request.

        Args:
            version: `eye@2`, or `2` for short; None for the default, which is the first that the
                tenant may use where it may not use the expert's own.

        Raises:
            NotFound: the expert or that version of it is not deployed; lists what is.
            Forbidden: the tenant may not use it; lists what it may.
        """
        allowed = self.list_allowed(policy)
        if not any(bundle.expert == expert for bundle in self):
            experts = ", ".join(sorted({bundle.expert for bundle in allowed}))
            raise NotFound(f"expert {expert!r} is not deployed", remedy=f"deployed: {experts}")
        if version is None:
            default = self.find_default(expert, policy)
            if default is None:
                raise _forbidden(f"the expert {expert!r}", allowed)
            return Choice(default, "default")
        version_id = version if "@" in version else f"{expert}@{version}"
        bundle = self._bundles.get(version_id)
        if not policy.allows(expert, version_id):
            raise _forbidden(f"{version_id!r}", allowed)
        if bundle is None or bundle.expert != expert:
            known = ", ".join(b.version for b in allowed if b.expert == expert)
            raise NotFound(f"{version_id!r} is no version of {expert!r}", remedy=f"known: {known}")
        return Choice(bundle, "explicit")

    def find_default(self, expert: Expert, policy: TenantPolicy = UNLIMITED) -> Bundle | None:
        """What a request gets about which nothing else decides; None where there is nothing."""
        # A preferred one that is not deployed, or not for this tenant, is passed over.
        for wanted in (self._preferred.get(expert), self._listed.get(expert)):
            own = None if wanted is None else self._bundles.get(wanted)
            if own is not None and policy.allows(expert, own.version):
                return own
        return next((b for b in self.list_allowed(policy) if b.expert == expert), None)


def _forbidden(what: str, allowed: tuple[Bundle, ...]) -> Forbidden:
    versions = ", ".join(bundle.version for bundle in allowed) or "none"
    return Forbidden(f"this tenant may not use {what}", remedy=f"allowed: {versions}")
