"""The deployment that runs durable jobs: claims them from the database, has routers run them."""

import logging
from collections.abc import Mapping
from functools import partial

from ray import serve as rayserve
from ray.serve.handle import DeploymentHandle

from deployments.bundle import Bundle
from deployments.options import group_experts
from serve.added import AddedVersions
from serve.admission.load import report_queued
from serve.config import AddedPlaces, FamilyConfig, VersionId
from serve.experiments.controller import RolloutController
from serve.experiments.probe import DeploymentProbe
from serve.experiments.split_watch import SPLIT_WATCH_S, SplitWatch
from serve.fetching.post import Poster
from serve.fleet import read_details
from serve.jobs.census import CENSUS_S, Census
from serve.jobs.chores import list_chores
from serve.jobs.deliveries import Deliverer
from serve.jobs.routine import Chore, Routine
from serve.jobs.run import JobOutcome, JobRun
from serve.jobs.runner import Runner
from serve.jobs.windows import plan_windows
from serve.jobs.work import build_forget
from serve.observing.logs import write_json_logs
from serve.ray_meter import RayMeter
from serve.served import shorten_traceback
from serve.services import open_services
from serve.settings import Settings
from serve.store.columns import utc_now
from serve.store.ledger import release_expired
from serve.transports import map_handle_errors

ROUTER = "Router"
# A chore that waits for the database gives up by itself long before this.
STUCK_S = 90.0
LEDGER_S = 30.0
SWEEP_S = 300.0


class JobRunner:
    """Runs from the moment it is there; nobody has to call it."""

    def __init__(
        self,
        family: FamilyConfig,
        bundles: Mapping[VersionId, Bundle],
        places: AddedPlaces,
    ):
        """
        Args:
            places: of versions that are added.
        """
        write_json_logs()
        context = rayserve.get_replica_context()
        logger = logging.getLogger("ray.serve")
        self._app_name = context.app_name
        self._router: DeploymentHandle | None = None
        self._meter = RayMeter()
        self._services = open_services(Settings(), meter=self._meter)
        windows = plan_windows(family, bundles)
        self._runner = Runner(
            database=self._services.database,
            config=family.jobs,
            windows=windows,
            dispatch=self._dispatch,
            owner=context.replica_tag,
            batch_floor=family.router.batch_floor,
            forget=build_forget(self._services.assets),
            logger=logger,
            meter=self._meter,
        )
        added = AddedVersions(
            database=self._services.database,
            family=family,
            bundles=bundles,
            windows=windows,
            app_name=context.app_name,
            places=places,
            replica_id=context.replica_tag,
            logger=logger,
        )
        deployments = {
            bundle.version: group.name
            for group in group_experts(family, bundles)
            for bundle in group.bundles
        }
        database = self._services.database
        self._rollouts = RolloutController(
            database,
            DeploymentProbe(
                database, context.app_name, deployments, read_details, shorten_traceback
            ),
            logger=logger,
            meter=self._meter,
        )
        deliverer = Deliverer(
            self._services.database,
            Poster(family.router.webhooks),
            logger=logger,
            meter=self._meter,
        )
        chores = [
            *list_chores(self._runner, family.jobs),
            Chore(name="deliver", every_s=1.0, work=deliverer.run_forever, is_endless=True),
            Chore(name="serve", every_s=1.0, work=added.turn),
            Chore(name="rollouts", every_s=1.0, work=self._rollouts.turn),
            Chore(name="splits", every_s=SPLIT_WATCH_S, work=SplitWatch(database).turn),
            Chore(name="census", every_s=CENSUS_S, work=Census(database, self._meter).turn),
            Chore(name="ledger", every_s=LEDGER_S, work=self._release_expired),
            # Endless, because a run over many tenants may take longer than a chore should.
            Chore(
                name="sweep",
                every_s=SWEEP_S,
                work=partial(self._services.sweeper.run_forever, SWEEP_S),
                is_endless=True,
            ),
        ]
        self._routine = Routine(chores, logger)
        self._routine.start()
        self._services.sampler.start()

    async def _release_expired(self) -> None:
        """What routers reserved for synchronous calls and died with."""
        async with self._services.database.transaction() as session:
            num_expired = await release_expired(session, utc_now())
        self._meter.add("sm4ll_settlements_total", num_expired, outcome="expired")

    async def _dispatch(self, run: JobRun) -> JobOutcome:
        # Not before the first job: the router starts after this, which is part of its graph.
        if self._router is None:
            self._router = rayserve.get_deployment_handle(ROUTER, self._app_name)
        response = self._router.run_job.remote(run)
        answered = False
        try:
            with map_handle_errors("the router"):
                outcome: JobOutcome = await response
            answered = True
            return outcome
        finally:
            if not answered:
                response.cancel()

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises three times."""
        stuck = self._routine.find_stuck(STUCK_S)
        if stuck:
            raise RuntimeError(f"no turn within {STUCK_S:.0f} s: {', '.join(stuck)}")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What waits in the database; Serve calls it and tells the autoscaler."""
        return report_queued(await self._runner.queued_s())

    async def __del__(self) -> None:
        # Serve awaits this when the replica has drained: what is unfinished goes to others at
        # once, instead of a lease later.
        await self._routine.stop()
        await self._rollouts.stop()
        await self._runner.stop()
        await self._services.close()
