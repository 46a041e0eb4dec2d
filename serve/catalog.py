"""Which expert versions there are, which ones a tenant may use, and which one a request gets."""

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
    """Every deployed version; the first one listed of an expert is its default."""

    def __init__(self, family: FamilyConfig, bundles: Mapping[VersionId, Bundle]):
        self.family = family
        self._bundles = dict(bundles)
        self._defaults: dict[Expert, VersionId] = {}
        for deployed in family.experts:
            self._defaults.setdefault(deployed.expert, deployed.version)

    def __iter__(self) -> Iterator[Bundle]:
        return iter(self._bundles.values())

    def list_allowed(self, policy: TenantPolicy = UNLIMITED) -> tuple[Bundle, ...]:
        """What a tenant may use; the others do not exist as far as it is told."""
        return tuple(b for b in self if policy.allows(b.expert, b.version))

    def is_default(self, bundle: Bundle, policy: TenantPolicy = UNLIMITED) -> bool:
        return self._default(bundle.expert, policy) == bundle

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
        if expert not in self._defaults:
            experts = ", ".join(sorted({bundle.expert for bundle in allowed}))
            raise NotFound(f"expert {expert!r} is not deployed", remedy=f"deployed: {experts}")
        if version is None:
            default = self._default(expert, policy)
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

    def _default(self, expert: Expert, policy: TenantPolicy) -> Bundle | None:
        own = self._bundles[self._defaults[expert]]
        if policy.allows(expert, own.version):
            return own
        return next((b for b in self.list_allowed(policy) if b.expert == expert), None)


def _forbidden(what: str, allowed: tuple[Bundle, ...]) -> Forbidden:
    versions = ", ".join(bundle.version for bundle in allowed) or "none"
    return Forbidden(f"this tenant may not use {what}", remedy=f"allowed: {versions}")
