"""What has to be done so that the added versions run as wished; pure.

Every added version is a Serve application of its own, beside that of the family: what happens to
it touches nothing else. A masker that the family does not have is one more.
"""

import hashlib
import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from deployments.bundle import Bundle
from deployments.options import ExpertGroup
from serve.config import Deployed, VersionId
from serve.experiments.versions import Wish
from serve.store.experiment_tables import ServedState

EXPERT, SEGMENTER = "Expert-", "Segmenter-"
LINGER_S = 10.0
"""From the moment a version is being removed: every router knows it after three seconds, and what
waits there has the rest to begin."""

RUNNING, FAILED, UNHEALTHY, DELETING = "RUNNING", "DEPLOY_FAILED", "UNHEALTHY", "DELETING"
"""Serve's words for the status of an application: `FAILED` is one that never ran, `UNHEALTHY` one
whose replicas died and are replaced."""


def group_of(wish: Wish) -> ExpertGroup:
    """The deployment of a version that has replicas of its own."""
    # A plain `Deployed`: the group's versions are those of its bundles.
    told = wish.deployed.model_dump(include=set(Deployed.model_fields), exclude_unset=True)
    return ExpertGroup(expert_name(wish.version), Deployed.model_validate(told), (wish.located,))


def expert_name(version: VersionId) -> str:
    return f"{EXPERT}{version}"


def segmenter_name(masker_id: str) -> str:
    return f"{SEGMENTER}{masker_id}"


def app_of(family_app: str, deployment: str) -> str:
    """The application of one added deployment: `sm4ll.Expert-eye@2`."""
    return f"{family_app}.{deployment}"


def is_added(family_app: str, app: str) -> bool:
    """Whether it is one of ours; another application of the cluster may begin alike."""
    return app.startswith((app_of(family_app, EXPERT), app_of(family_app, SEGMENTER)))


def code_version(wish: Wish) -> str:
    """Of what runs: the same again changes nothing that runs."""
    told = (wish.bundle.fingerprint, wish.home, wish.deployed.model_dump_json())
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One row, as far as it matters here."""

    version: VersionId
    state: ServedState
    reason: str
    updated_at: datetime
    deployments: tuple[str, ...]
    """That it needs, besides those of the family: its expert, then its segmenter if it has one."""


@dataclass(frozen=True, slots=True)
class AppStatus:
    """How an application of the cluster stands."""

    status: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One row's next state."""

    version: VersionId
    before: ServedState
    state: ServedState
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What to do now, in this order."""

    steps: tuple[Step, ...] = ()
    deploy: tuple[VersionId, ...] = ()
    """Whose deployments shall be there; those that are stay as they are."""
    delete: tuple[str, ...] = ()
    """Deployments that nobody needs."""
    forget: tuple[VersionId, ...] = ()
    """Rows of what is gone."""


def plan_moves(
    wanted: Sequence[Wanted],
    apps: Mapping[str, AppStatus],
    *,
    started_at: datetime,
    now: datetime,
) -> Moves:
    """Compare what is wished with what runs.

    Args:
        apps: of the added deployments, by the deployment's name.
        started_at: of this process: what failed before it is tried once more, since the cluster
            may be another.
    """
    steps: list[Step] = []
    deploy: list[VersionId] = []
    forget: list[VersionId] = []
    needed: set[str] = set()
    for row in wanted:
        status = _together(row, apps)
        if row.state is ServedState.REMOVING:
            is_over = now - row.updated_at >= timedelta(seconds=LINGER_S)
            if row.deployments[0] not in apps:
                forget.append(row.version)
            elif not is_over:
                needed.update(row.deployments)
            continue
        if row.state is ServedState.FAILED and row.updated_at >= started_at:
            continue
        step = _judge(row, status)
        if step is None or step.state is not ServedState.FAILED:
            needed.update(row.deployments)
            if status is None:
                deploy.append(row.version)
        if step is not None:
            steps.append(step)
    return Moves(
        steps=tuple(steps),
        deploy=tuple(deploy),
        delete=tuple(sorted(_list_unneeded(apps, needed))),
        forget=tuple(forget),
    )


def _together(row: Wanted, apps: Mapping[str, AppStatus]) -> AppStatus | None:
    """Of all that it needs: what failed counts first, then what is missing or not there yet."""
    found = [apps.get(name) for name in row.deployments]
    for status in found:
        if status is not None and status.status in (FAILED, UNHEALTHY):
            return status
    if None in found:
        return None
    waiting = [one for one in found if one is not None and one.status != RUNNING]
    return waiting[0] if waiting else AppStatus(RUNNING)


def _judge(row: Wanted, status: AppStatus | None) -> Step | None:
    if row.state is ServedState.FAILED:
        return _step(row, ServedState.WANTED, "")
    if status is None or status.status == DELETING:
        # A cluster that was started anew. What was ready stays so: another cluster on the same
        # database may serve it meanwhile, and no unit of an experiment changes its arm.
        return None
    if status.status == RUNNING:
        return _step(row, ServedState.READY, "")
    if status.status == FAILED or (status.status == UNHEALTHY and row.state is ServedState.WANTED):
        return _step(row, ServedState.FAILED, status.message or "Serve does not say why")
    # One that was ready stays so while Serve replaces its replicas: requests wait for them, as for
    # the family's own, instead of being told that there is no such version.
    return _step(row, row.state, status.message)


def _step(row: Wanted, state: ServedState, reason: str) -> Step | None:
    if (state, reason) == (row.state, row.reason):
        return None
    return Step(version=row.version, before=row.state, state=state, reason=reason)


def _list_unneeded(apps: Mapping[str, AppStatus], needed: Collection[str]) -> list[str]:
    return [
        name for name, status in apps.items() if name not in needed and status.status != DELETING
    ]


def list_deployments(bundle: Bundle, family_maskers: Collection[str]) -> tuple[str, ...]:
    """What one added version needs besides the family's."""
    expert = expert_name(bundle.version)
    if bundle.masker.id in family_maskers:
        return (expert,)
    return (expert, segmenter_name(bundle.masker.id))


def shorten_traceback(text: str) -> str:
    """What was raised and what helps, without the way there; other texts as they are."""
    if "Traceback (most recent call last)" not in text:
        return text
    raised = itertools.takewhile(
        lambda line: line and not line[0].isspace(), reversed(text.rstrip().splitlines())
    )
    lines = [line for line in reversed(list(raised)) if not line.startswith("Traceback")]
    return "\n".join(lines) or text
