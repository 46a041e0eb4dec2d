"""The added versions in the cluster: applications of their own beside the family's, deployed,
looked at and deleted by name.

They are deployed imperatively: what deploys the family again, a config, removes only applications
that came by a config.
"""

import asyncio
import logging
import warnings
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

from ray import serve as rayserve
from ray.exceptions import RayError
from ray.serve import Application, Deployment, RunTarget
from ray.serve.handle import DeploymentHandle

from deployments.bundle import Bundle
from deployments.expert import ExpertReplica
from deployments.options import (
    Options,
    alone_options,
    door_options,
    placed_options,
    segmenter_options,
)
from deployments.segmentation import SegmenterReplica
from serve.config import AddedPlaces, FamilyConfig, ReplicaPlan, VersionId
from serve.errors import ConfigError
from serve.experiments.versions import Wish, read_wish
from serve.fleet import read_details
from serve.jobs.windows import Windows
from serve.observing.logs import LOGGING_CONFIG
from serve.ray_meter import RayMeter
from serve.served import (
    AppStatus,
    Moves,
    Step,
    Wanted,
    app_of,
    code_version,
    expert_name,
    group_of,
    is_added,
    list_deployments,
    plan_moves,
    segmenter_name,
    shorten_traceback,
)
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.experiment_tables import ServedState, ServedVersion
from serve.store.served import clean_reason, delete_served, list_served, set_served_state

RUNNER, DOOR = "JobRunner", "Door"
# While everything is as wished: so often is it looked at whether that is still so.
SETTLED_S = 5.0


def build_deployment(target: Callable[..., object], options: Options) -> Deployment:
    with warnings.catch_warnings():
        # About the interval at which load is reported; see deployments/options.py.
        warnings.filterwarnings("ignore", "The `metrics_interval_s` field", DeprecationWarning)
        return rayserve.deployment(target, **options)


class Door:
    """The first deployment of an added version's application, which nobody asks.

    Serve gives the first a port for HTTP and refuses it a request router of its own, where HAProxy
    is in front. With the expert behind this one an added version is asked exactly as those of the
    family are: arms that are compared differ in nothing else.
    """

    def __init__(self, expert: DeploymentHandle):
        """
        Args:
            expert: being named here makes it part of the application.
        """


class AddedApps:
    """The applications of one family's added versions, in the cluster this process is in."""

    def __init__(self, family: FamilyConfig, app_name: str, places: AddedPlaces):
        self._family = family
        self._app_name = app_name
        self._places = places

    async def deploy(self, wish: Wish, names: Collection[str]) -> None:
        """Returns when the controller knows of it; what runs in the same version stays.

        Args:
            names: of the deployments that it needs.
        """
        targets = [
            RunTarget(
                target=self._build(wish, name),
                name=self._app(name),
                route_prefix=None,
                logging_config=LOGGING_CONFIG,
            )
            for name in names
        ]
        await asyncio.to_thread(
            rayserve.run_many,
            targets,
            blocking=False,
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    async def delete(self, names: Collection[str]) -> None:
        """Replicas end what they have; nobody waits for that here."""
        for name in names:
            await asyncio.to_thread(rayserve.delete, self._app(name), _blocking=False)

    def read(self, details: Mapping[str, Any]) -> dict[str, AppStatus]:
        """Of what Serve's controller told, by the deployment's name."""
        prefix = app_of(self._app_name, "")
        return {
            name.removeprefix(prefix): _status_of(told)
            for name, told in details.get("applications", {}).items()
            if is_added(self._app_name, name)
        }

    def leads(self, details: Mapping[str, Any], replica_id: str) -> bool:
        """Whether this runner is the one of its cluster that acts; each cluster has one."""
        app = details.get("applications", {}).get(self._app_name, {})
        replicas = app.get("deployments", {}).get(RUNNER, {}).get("replicas", ())
        running = [one["replica_id"] for one in replicas if one["state"] == "RUNNING"]
        return bool(running) and min(running) == replica_id

    def _app(self, name: str) -> str:
        return app_of(self._app_name, name)

    def _build(self, wish: Wish, name: str) -> Application:
        family, bundle = self._family, wish.located
        if name == segmenter_name(bundle.masker.id):
            options = segmenter_options(family.segmenter, bundle.masker.id)
            placed = placed_options(options, self._places.segmenter)
            return _pinned(SegmenterReplica, placed, name).bind(
                family.segmenter, bundle.masker, bundle.home, family.weights, RayMeter
            )
        group = group_of(wish)
        plan = ReplicaPlan(
            name=group.name,
            weights=family.weights,
            num_gpus=group.deployed.resources.num_gpus,
        )
        place = self._places.gpu if plan.num_gpus else self._places.cpu
        expert = _pinned(
            ExpertReplica, placed_options(alone_options(group), place), code_version(wish)
        )
        door = _pinned(Door, placed_options(door_options(), self._places.cpu), DOOR)
        return door.bind(expert.bind(group.bundles, plan, open_meter=RayMeter))


def _pinned(target: Callable[..., object], options: Options, version: str) -> Deployment:
    """Deployed again in the same version it is the same; Serve draws a new one otherwise, and
    replaces every replica."""
    return build_deployment(target, options).options(version=version, _internal=True)


def _status_of(told: Mapping[str, Any]) -> AppStatus:
    of_deployments = [str(one.get("message") or "") for one in told["deployments"].values()]
    message = next(filter(None, of_deployments), str(told.get("message") or ""))
    status = told["status"]
    return AppStatus(
        str(getattr(status, "value", status)), clean_reason(shorten_traceback(message))
    )


class AddedVersions:
    """What the job runner does so that the added versions run as wished."""

    def __init__(
        self,
        *,
        database: Database,
        family: FamilyConfig,
        bundles: Mapping[VersionId, Bundle],
        windows: Windows,
        app_name: str,
        places: AddedPlaces,
        replica_id: str,
        logger: logging.Logger,
        now: Callable[[], datetime] = utc_now,
    ):
        self._database = database
        self._family = family
        self._family_versions = frozenset(bundles)
        self._maskers = frozenset(bundle.masker.id for bundle in bundles.values())
        self._windows = windows
        self._apps = AddedApps(family, app_name, places)
        self._replica_id = replica_id
        self._logger = logger
        self._now = now
        self._started_at = now()
        self._seen: object = None
        self._look_at: datetime = self._started_at

    async def turn(self) -> None:
        """Once: look, compare, act. Whatever fails is seen again a second later."""
        async with self._database.reading() as session:
            rows = [
                row
                for row in await list_served(session)
                if row.version not in self._family_versions
            ]
        seen = [(row.version, row.state, row.updated_at) for row in rows]
        if seen == self._seen and self._now() < self._look_at:
            return
        wishes = self._read(rows)
        self._windows.follow(map(group_of, wishes.values()), self._family.jobs)
        details = await asyncio.to_thread(read_details)
        if not self._apps.leads(details, self._replica_id):
            self._seen, self._look_at = seen, self._now() + timedelta(seconds=SETTLED_S)
            return
        wanted = [self._want(row, wishes.get(row.version)) for row in rows]
        moves = plan_moves(
            wanted, self._apps.read(details), started_at=self._started_at, now=self._now()
        )
        await self._act(moves, wishes, {one.version: one.deployments for one in wanted})
        self._note(seen, rows, moves)

    def _note(self, seen: object, rows: list[ServedVersion], moves: Moves) -> None:
        settled = (ServedState.READY, ServedState.FAILED)
        is_settled = moves == Moves() and all(row.state in settled for row in rows)
        self._seen = seen if is_settled else None
        self._look_at = self._now() + timedelta(seconds=SETTLED_S)

    def _read(self, rows: list[ServedVersion]) -> dict[VersionId, Wish]:
        """Those that can be read: a newer version of this system may have written others."""
        wishes = {}
        for row in rows:
            try:
                wishes[row.version] = read_wish(row.bundle, row.deployed, row.home)
            except ValueError as exc:
                self._logger.warning("%s is not served: %s", row.version, exc)
        return wishes

    def _want(self, row: ServedVersion, wish: Wish | None) -> Wanted:
        if wish is None:
            names: tuple[str, ...] = (expert_name(row.version),)
        else:
            names = list_deployments(wish.bundle, self._maskers)
        return Wanted(
            version=row.version,
            state=row.state,
            reason=row.reason,
            updated_at=row.updated_at,
            deployments=names,
        )

    async def _act(
        self,
        moves: Moves,
        wishes: Mapping[VersionId, Wish],
        names: Mapping[VersionId, tuple[str, ...]],
    ) -> None:
        for step in moves.steps:
            await self._write(step)
        await self._apps.delete(moves.delete)
        for version in moves.deploy:
            try:
                if version not in wishes:
                    raise ConfigError("its bundle cannot be read here")
                await self._apps.deploy(wishes[version], names[version])
            except RayError:
                raise  # the cluster's trouble: the next turn tries again
            except Exception as exc:
                self._logger.exception("%s cannot be deployed", version)
                reason = clean_reason(f"{type(exc).__name__}: {exc}")
                await self._write(
                    Step(
                        version=version,
                        before=ServedState.WANTED,
                        state=ServedState.FAILED,
                        reason=reason,
                    )
                )
        for version in moves.forget:
            async with self._database.transaction() as session:
                await delete_served(session, version)

    async def _write(self, step: Step) -> None:
        async with self._database.transaction() as session:
            await set_served_state(
                session, step.version, step.before, step.state, step.reason, self._now()
            )
        self._logger.info("%s: %s %s", step.version, step.state.value, step.reason)
