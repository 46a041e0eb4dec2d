"""Chooses the version of a request: named, pinned, by experiment, or the default.

The choice is made once for each answer; work that is done later carries it along.
"""

from collections.abc import Mapping
from typing import Any

from deployments.bundle import Bundle
from serve.catalog import UNLIMITED, Catalog, Choice
from serve.errors import Conflict, Forbidden
from serve.experiments.assignment import Assignment, LiveExperiment, Party, assign
from serve.experiments.book import RoutingBook
from serve.experiments.pins import Manifest, PinBook, PinnedVersion
from serve.messages import EXPERTS, Expert
from serve.observing.tracing import Attributes
from serve.policy import TenantPolicy
from serve.schemas.tryon import TryOnOptions
from serve.tenancy.caller import Caller

PINNED = "pinned"


def describe_choice(choice: Choice) -> Attributes:
    """Of the span of what the version was chosen for."""
    assignment = choice.assignment
    return {
        "gen_ai.operation.name": "image_generation",
        "gen_ai.request.model": choice.bundle.version,
        "sm4ll.expert": choice.bundle.expert,
        "sm4ll.version": choice.bundle.version,
        "sm4ll.arm": choice.arm,
        "sm4ll.experiment": None if assignment is None else assignment.experiment,
    }


class Chooser:
    """Knows what is deployed, what is tried on whom, and who must not be moved."""

    def __init__(self, catalog: Catalog, book: RoutingBook, pins: PinBook):
        self._catalog = catalog
        self._book = book
        self._pins = pins
        book.on_change(lambda table: catalog.prefer(table.defaults))

    async def choose(
        self, options: TryOnOptions, party: Party, policy: TenantPolicy, *, may_name_version: bool
    ) -> Choice:
        """
        Args:
            may_name_version: whether the caller's key has a scope that allows it.

        Raises:
            Forbidden: the key may not name a version, or the tenant may not use this one.
            NotFound: the expert or that version of it is not deployed.
            Conflict: the collection is pinned to something that is not there any more.
            StoreUnavailable: nothing is known yet, and the database does not answer.
        """
        if options.version is not None:
            if not may_name_version:
                raise _may_not_name()
            await self._book.fresh()  # it may have been added just now
            return self._catalog.choose(options.expert, options.version, policy)
        if options.collection is not None:
            manifest = await self._pins.find(party.tenant_id, options.collection)
            pinned = manifest.get(options.expert)
            if pinned is not None:
                return self._keep(options.expert, pinned, policy, options.collection)
        table = await self._book.fresh()
        for experiment in table.experiments.get(options.expert, ()):
            choice = self._try(experiment, party, policy)
            if choice is not None:
                return choice
        return self._catalog.choose(options.expert, None, policy)

    def recall(
        self, expert: Expert, version: str, kept: Mapping[str, Any] | None, policy: TenantPolicy
    ) -> Choice:
        """See `load_choice`."""
        return load_choice(self._catalog, expert, version, kept, policy)

    async def pin(self, versions: Mapping[Expert, str] | None, policy: TenantPolicy) -> Manifest:
        """What a collection is pinned to.

        Args:
            versions: `eye@1` or `1` by expert; the default of each expert when absent.

        Raises:
            NotFound, Forbidden: one of them is not deployed, or not for this tenant.
        """
        await self._book.fresh()
        if versions is None:
            defaults = (self._catalog.find_default(expert, policy) for expert in EXPERTS)
            bundles = [bundle for bundle in defaults if bundle is not None]
        else:
            bundles = [
                self._catalog.choose(expert, version, policy).bundle
                for expert, version in versions.items()
            ]
        return {one.expert: PinnedVersion(one.version, one.fingerprint) for one in bundles}

    def _keep(
        self, expert: Expert, pinned: PinnedVersion, policy: TenantPolicy, collection: str
    ) -> Choice:
        bundle = find_unchanged(self._catalog, pinned, f"the collection {collection!r} is pinned")
        if not policy.allows(expert, bundle.version):
            return self._catalog.choose(expert, pinned.version, policy)  # which says so
        return Choice(bundle, PINNED)

    def _try(self, experiment: LiveExperiment, party: Party, policy: TenantPolicy) -> Choice | None:
        # Whether one takes part must not depend on the arm it would get: all run, or none does.
        if any(self._catalog.get(arm.version) is None for arm in experiment.design.arms):
            return None
        assignment = assign(experiment, party, policy)
        if assignment is None:
            return None
        bundle = self._catalog.get(assignment.version)
        return None if bundle is None else Choice(bundle, assignment.arm, assignment)


def party_of(caller: Caller, options: TryOnOptions, request_id: str | None) -> Party:
    """
    Args:
        request_id: None for work that is many requests.
    """
    return Party(
        tenant_id=caller.tenant_id,
        request_id=request_id,
        key_id=caller.key_id,
        user=options.unit,
        sku=options.sku,
        collection=options.collection,
    )


def find_unchanged(catalog: Catalog, pinned: PinnedVersion, who: str) -> Bundle:
    """The version, if it still paints what it painted when it was pinned.

    Raises:
        Conflict: it is gone, or it is another one under the same name.
    """
    bundle = catalog.get(pinned.version)
    if bundle is None:
        raise Conflict(f"{who} to {pinned.version}, which is not deployed any more", remedy=_REMEDY)
    if bundle.fingerprint != pinned.bundle_sha256:
        raise Conflict(
            f"{who} to {pinned.version} as it was (bundle {pinned.bundle_sha256[:12]}), and its"
            f" bundle has changed since ({bundle.fingerprint[:12]}): the pictures would differ",
            remedy=_REMEDY,
        )
    return bundle


_REMEDY = "PUT /v1/pins/{collection} pins it to what runs now, DELETE frees it"


def _may_not_name() -> Forbidden:
    return Forbidden(
        "version: naming one needs a key with the scope 'versions'",
        remedy="leave version out, or ask whoever runs this service for a key with that scope",
    )


def dump_choice(choice: Choice) -> dict[str, Any]:
    """As a job's row keeps it, beside the version itself."""
    assignment = choice.assignment
    kept: dict[str, Any] = {
        "arm": choice.arm,
        "experiment": None if assignment is None else assignment.experiment,
        "revision": None if assignment is None else assignment.revision,
        "unit": None if assignment is None else assignment.unit,
    }
    if choice.arm == PINNED and assignment is None:
        kept["bundle_sha256"] = choice.bundle.fingerprint
    return kept


def load_choice(
    catalog: Catalog,
    expert: Expert,
    version: str,
    kept: Mapping[str, Any] | None,
    policy: TenantPolicy = UNLIMITED,
) -> Choice:
    """What was chosen when the work was accepted.

    Args:
        kept: None for work from before choices were kept.

    Raises:
        NotFound: the version is not deployed any more.
        Forbidden: the tenant may not use it any more.
        Conflict: it was pinned, and has changed since.
    """
    bundle = catalog.choose(expert, version, policy).bundle
    if kept is None:
        return Choice(bundle, "explicit")
    if "bundle_sha256" in kept:
        find_unchanged(catalog, PinnedVersion(version, kept["bundle_sha256"]), "the work is pinned")
    if kept["experiment"] is None:
        return Choice(bundle, kept["arm"])
    assignment = Assignment(
        experiment=kept["experiment"],
        revision=kept["revision"],
        arm=kept["arm"],
        version=bundle.version,
        unit=kept["unit"],
    )
    return Choice(bundle, kept["arm"], assignment)
