"""Which expert versions there are, and which one a request gets."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deployments.bundle import Bundle
from serve.config import FamilyConfig, VersionId
from serve.errors import NotFound
from serve.messages import Expert


@dataclass(frozen=True, slots=True)
class Choice:
    """The version that serves one request, and why it is that one."""

    bundle: Bundle
    arm: str
    """`default`, or `explicit` when the caller named the version."""


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

    def is_default(self, bundle: Bundle) -> bool:
        return self._defaults[bundle.expert] == bundle.version

    def choose(self, expert: Expert, version: str | None) -> Choice:
        """Pick the version for a request.

        Args:
            version: `eye@2`, or `2` for short; None for the default.

        Raises:
            NotFound: the expert or that version of it is not deployed; lists what is.
        """
        if expert not in self._defaults:
            deployed = ", ".join(sorted(self._defaults))
            raise NotFound(f"expert {expert!r} is not deployed", remedy=f"deployed: {deployed}")
        if version is None:
            return Choice(self._bundles[self._defaults[expert]], "default")
        version_id = version if "@" in version else f"{expert}@{version}"
        bundle = self._bundles.get(version_id)
        if bundle is None or bundle.expert != expert:
            known = ", ".join(b.version for b in self if b.expert == expert)
            raise NotFound(f"{version_id!r} is no version of {expert!r}", remedy=f"known: {known}")
        return Choice(bundle, "explicit")
