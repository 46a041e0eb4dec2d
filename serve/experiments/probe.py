"""Whether a version's deployment can be asked, as Serve's controller and the store tell it."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from serve.experiments.rollout import READY, Readiness
from serve.store.engine import Database
from serve.store.experiment_tables import ServedState
from serve.store.served import find_served

MAX_REASON_CHARS = 300
RUNNING = "RUNNING"


class DeploymentProbe:
    """Asks about versions of one family.

    Args:
        app_name: the family's Serve application.
        deployments: of the family's own versions, by version.
        read_details: what Serve's controller tells of every application.
        shorten: leaves out the way to what was raised.
    """

    def __init__(
        self,
        database: Database,
        app_name: str,
        deployments: Mapping[str, str],
        read_details: Callable[[], Mapping[str, Any]],
        shorten: Callable[[str], str] = str,
    ):
        self._database = database
        self._app_name = app_name
        self._deployments = deployments
        self._read_details = read_details
        self._shorten = shorten

    async def __call__(self, version: str) -> Readiness:
        """
        Raises:
            StoreUnavailable: the database does not answer.
        """
        name = self._deployments.get(version)
        if name is None:
            return await self._read_added(version)
        details = await asyncio.to_thread(self._read_details)
        app = details.get("applications", {}).get(self._app_name, {})
        return judge_deployment(app.get("deployments", {}).get(name), self._shorten)

    async def _read_added(self, version: str) -> Readiness:
        """Whoever deploys it writes into its row how it fares."""
        async with self._database.reading() as session:
            row = await find_served(session, version)
        if row is None or row.state is ServedState.REMOVING:
            return _not_ready(f"nothing serves it; deploy it: sm4ll experts deploy {version}")
        if row.state is ServedState.READY:
            return READY
        return _not_ready(row.reason or "its deployment starts")


def judge_deployment(
    deployment: Mapping[str, Any] | None, shorten: Callable[[str], str] = str
) -> Readiness:
    """One that is meant to have no replica while nobody asks is ready too.

    Args:
        deployment: Serve's `DeploymentDetails`, as a dictionary.
    """
    if deployment is None:
        return _not_ready("its deployment is not there yet")
    if any(_word(replica["state"]) == RUNNING for replica in deployment.get("replicas", ())):
        return READY
    status = _word(deployment.get("status", ""))
    if status == "HEALTHY" and not deployment.get("target_num_replicas"):
        return READY
    message = shorten(str(deployment.get("message") or ""))
    return _not_ready(message or "its first replica starts")


def _word(value: Any) -> str:
    """Serve's enums, where it did not write them out."""
    return str(getattr(value, "value", value))


def _not_ready(reason: str) -> Readiness:
    """On one line; PostgreSQL keeps no NUL."""
    words = " ".join(reason.replace("\x00", "").split())
    return Readiness(is_ready=False, reason=words[:MAX_REASON_CHARS])
