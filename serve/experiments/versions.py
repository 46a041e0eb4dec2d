"""Versions that are added to the running cluster: what may be wished for, and who wished it.

Each wish and its audit record are one transaction. That it comes true is the job runner's affair.
"""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import Field

from deployments.bundle import Bundle
from deployments.recipes import HostedConfig
from deployments.sources import find_sources
from serve.config import Config, DeployedVersion, VersionId
from serve.errors import Conflict, InvalidRequest
from serve.store.audit import Act, append_record, lock_audit
from serve.store.columns import utc_now
from serve.store.engine import Database, Session
from serve.store.experiment_tables import ServedState, ServedVersion
from serve.store.routing import bump_routing
from serve.store.served import (
    find_served,
    get_served,
    insert_served,
    require_unused,
    set_served_state,
)


class Wish(Config):
    """One version with how it shall run; what `load_family` reads of a version of the file."""

    bundle: Bundle
    deployed: DeployedVersion
    home: str = Field(default="", max_length=1000, pattern=r"^[^\x00]*$")
    """The folder that relative paths of the bundle start from; empty where it has none."""

    @property
    def version(self) -> VersionId:
        return self.bundle.version

    @property
    def located(self) -> Bundle:
        """The bundle as if read from its home."""
        return self.bundle.located(Path(self.home))

    def dump_bundle(self) -> dict[str, Any]:
        """What was said, as the YAML has it."""
        return self.bundle.model_dump(mode="json", exclude_unset=True)

    def dump_deployed(self) -> dict[str, Any]:
        return self.deployed.model_dump(mode="json", exclude_unset=True)


def read_wish(bundle: Mapping[str, Any], deployed: Mapping[str, Any], home: str = "") -> Wish:
    """
    Args:
        bundle: the document of a bundle.
        deployed: what the family file says of a version; the version itself is the bundle's.

    Raises:
        pydantic.ValidationError: a field does not fit; its place begins with the argument's name.
    """
    version = f"{bundle.get('expert')}@{bundle.get('name')}"
    told = {"bundle": dict(bundle), "deployed": {**deployed, "version": version}, "home": home}
    return Wish.model_validate(told)


def check_wish(wish: Wish) -> None:
    """What fits, and still cannot be served: the rules of `load_family`, and those of one alone.

    Raises:
        InvalidRequest: names the field.
    """
    licence = wish.bundle.licence
    if not licence.commercial_use and not wish.deployed.allow_noncommercial:
        raise _invalid(
            "deployed.allow_noncommercial",
            f"{wish.version} is under {licence.name}, which forbids commercial use",
            "set deployed.allow_noncommercial: true if your use is not commercial",
        )
    if wish.deployed.shared is not None:
        raise _invalid(
            "deployed.shared",
            "a version that is added has replicas of its own",
            "leave it out; versions that share replicas are listed in the family file",
        )
    _require_own_address(wish.bundle)
    if wish.home and not PurePosixPath(wish.home).is_absolute():
        raise _invalid("home", "must be an absolute path", "a folder on the cluster's machines")
    if not wish.home:
        for place, _, source in find_sources(wish.bundle):
            if source.path is not None and not source.path.is_absolute():
                raise _invalid(
                    f"bundle.{place}.path",
                    f"{source.path} is relative, and there is no home that it starts from",
                    "say `home`, or an absolute path, or a hub repository",
                )


def _require_own_address(bundle: Bundle) -> None:
    """The provider's key, which is the environment's, goes with every request: whoever may add
    versions may not have it sent elsewhere, nor ask what only this network reaches."""
    if not isinstance(bundle.backend, HostedConfig):
        return
    provider = bundle.backend.provider
    own = type(provider).model_fields["base_url"].default
    if provider.base_url != own:
        raise _invalid(
            "bundle.backend.provider.base_url",
            f"a version that is added asks {own} itself, which the key is for",
            "leave it out; another address is for the family file's bundles",
        )


class ServedVersions:
    """Every method takes the actor: the id of the key that asks."""

    def __init__(
        self,
        database: Database,
        family_versions: Collection[VersionId],
        now: Callable[[], datetime] = utc_now,
    ):
        self._database = database
        self._family_versions = frozenset(family_versions)
        self._now = now

    async def add(self, actor: str, wish: Wish) -> ServedVersion:
        """The same again is the same row; one that failed is tried again, changed or not.

        Raises:
            InvalidRequest: it cannot be served.
            Conflict: the version runs already, and it is another; or it is being removed.
        """
        check_wish(wish)
        if wish.version in self._family_versions:
            raise Conflict(
                f"{wish.version} is in the family file, which wins",
                remedy="give the bundle another name: a version that was served never changes",
            )
        async with self._database.transaction() as session:
            await lock_audit(session)
            before = await find_served(session, wish.version)
            if before is not None and before.state is not ServedState.FAILED:
                _require_same(before, wish)
                return before
            if before is not None:
                await session.delete(before)
                await session.flush()
            row = await insert_served(
                session,
                version=wish.version,
                bundle=wish.dump_bundle(),
                home=wish.home,
                deployed=wish.dump_deployed(),
                actor=actor,
                now=self._now(),
            )
            detail = {
                "bundle_sha256": wish.bundle.fingerprint,
                "home": wish.home,
                "deployed": wish.dump_deployed(),
            }
            await self._record(session, actor, "version.deploy", wish.version, detail)
            return row

    async def remove(self, actor: str, version: VersionId) -> ServedVersion:
        """New requests get it no more; those that have it go on to their end.

        Raises:
            NotFound: it was not added.
            Conflict: it is a default, an arm, in a rollout or pinned.
        """
        async with self._database.transaction() as session:
            await lock_audit(session)
            await bump_routing(session)  # before looking: nobody begins to use it meanwhile
            row = await get_served(session, version)
            if row.state is ServedState.REMOVING:
                return row
            await require_unused(session, version)
            await set_served_state(
                session, version, row.state, ServedState.REMOVING, "", self._now()
            )
            await self._record(session, actor, "version.undeploy", version, {})
            await session.refresh(row)
            return row

    async def _record(
        self, session: Session, actor: str, action: str, version: str, detail: Mapping[str, Any]
    ) -> None:
        act = Act(actor=actor, action=action, tenant_id=None, target=version, detail=detail)
        await append_record(session, act, self._now())


def _require_same(row: ServedVersion, wish: Wish) -> None:
    if row.state is ServedState.REMOVING:
        raise Conflict(
            f"{row.version} is being removed", remedy="wait until GET /v1/versions lists it no more"
        )
    if read_wish(row.bundle, row.deployed, row.home) != wish:
        raise Conflict(
            f"{row.version} runs already, with another bundle or other settings",
            remedy="give the bundle another name, or undeploy the version first",
        )


def _invalid(field: str, message: str, remedy: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {message}", remedy=remedy, fields=((field, message),))
