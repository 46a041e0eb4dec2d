"""Rows of versions that run beside those of the family file: what is wanted, and how it stands."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, tuple_, update

from serve.errors import Conflict, NotFound
from serve.store.engine import Session
from serve.store.experiment_tables import (
    Experiment,
    ExperimentState,
    ExpertDefault,
    Pin,
    ServedState,
    ServedVersion,
)
from serve.store.rollout_tables import Rollout
from serve.store.routing import bump_routing

MAX_REASON_CHARS = 2000


async def find_served(session: Session, version: str) -> ServedVersion | None:
    found = select(ServedVersion).where(ServedVersion.version == version)
    return await session.scalar(found, execution_options={"populate_existing": True})


async def get_served(session: Session, version: str) -> ServedVersion:
    """
    Raises:
        NotFound: it was not added.
    """
    row = await find_served(session, version)
    if row is None:
        raise NotFound(
            f"{version!r} was not added to this cluster", remedy="GET /v1/versions lists what was"
        )
    return row


async def list_served(
    session: Session, *, limit: int | None = None, after: str | None = None
) -> Sequence[ServedVersion]:
    """Newest first; those that come after the version `after`.

    Raises:
        NotFound: there is no version `after`.
    """
    newest = select(ServedVersion).order_by(
        ServedVersion.created_at.desc(), ServedVersion.version.desc()
    )
    if after is not None:
        last = await get_served(session, after)
        place = tuple_(ServedVersion.created_at, ServedVersion.version)
        newest = newest.where(place < tuple_(last.created_at, last.version))
    return (await session.scalars(newest if limit is None else newest.limit(limit))).all()


async def insert_served(
    session: Session,
    *,
    version: str,
    bundle: dict[str, Any],
    home: str,
    deployed: dict[str, Any],
    actor: str,
    now: datetime,
) -> ServedVersion:
    """A wish; `wanted` until the cluster has made it so."""
    await bump_routing(session)
    row = ServedVersion(
        version=version,
        bundle=bundle,
        home=home,
        deployed=deployed,
        state=ServedState.WANTED,
        reason="",
        created_by=actor,
        created_at=now,
        updated_at=now,
    )
    session.add(row)
    await session.flush()
    return row


async def set_served_state(
    session: Session,
    version: str,
    before: ServedState,
    state: ServedState,
    reason: str,
    now: datetime,
) -> bool:
    """Unless it is no longer as it was `before`: whoever looked at the cluster meanwhile must not
    undo what somebody wished. One change in a transaction: the routing's row is locked first.

    Returns:
        Whether it was written.
    """
    if state is not before:
        await bump_routing(session)
    changed = (
        update(ServedVersion)
        .where(ServedVersion.version == version, ServedVersion.state == before)
        .values(state=state, reason=clean_reason(reason), updated_at=now)
        .returning(ServedVersion.version)
        .execution_options(synchronize_session=False)
    )
    return (await session.execute(changed)).scalar_one_or_none() is not None


async def delete_served(session: Session, version: str) -> bool:
    """What was being removed, now that it is gone; says whether it was still there."""
    await bump_routing(session)
    gone = (
        delete(ServedVersion)
        .where(ServedVersion.version == version, ServedVersion.state == ServedState.REMOVING)
        .returning(ServedVersion.version)
    )
    return (await session.execute(gone)).scalar_one_or_none() is not None


async def require_unused(session: Session, version: str) -> None:
    """Call `bump_routing` first: whoever makes use of it then waits for the end of this.

    Raises:
        Conflict: requests that name no version may get it; says by what.
    """
    expert = version.partition("@")[0]
    default = await session.get(ExpertDefault, expert)
    if default is not None and default.version == version:
        raise _in_use(f"{version} is the default of {expert}", "make another version the default")
    # Before the experiments: a rollout's own is not to be ended by hand.
    on_its_way = select(Rollout).where(Rollout.finished_at.is_(None), Rollout.expert == expert)
    for rollout in await session.scalars(on_its_way):
        if version in (rollout.plan["version"], rollout.plan.get("against")):
            raise _in_use(
                f"{version} is in the rollout {rollout.id}", "wait for its end, or abort it"
            )
    live = select(Experiment).where(Experiment.state != ExperimentState.ENDED)
    for experiment in await session.scalars(live.order_by(Experiment.id)):
        if version in (arm["version"] for arm in experiment.design["arms"]):
            raise _in_use(f"{version} is an arm of {experiment.id!r}", "end the experiment first")
    pinned = select(Pin).where(Pin.manifest[(expert, "version")].as_string() == version).limit(1)
    if (await session.scalar(pinned)) is not None:
        raise _in_use(f"a collection is pinned to {version}", "remove its pin first")


def clean_reason(reason: str) -> str:
    """As the database keeps it: PostgreSQL has no NUL."""
    return reason.replace("\x00", "")[:MAX_REASON_CHARS]


def _in_use(detail: str, remedy: str) -> Conflict:
    return Conflict(detail, remedy=remedy)
