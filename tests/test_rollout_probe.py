"""A version can be asked once a replica runs, or none is meant to; else the reason is told."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest

from serve.experiments.probe import DeploymentProbe, judge_deployment
from serve.store.engine import Database
from serve.store.experiment_tables import ServedState, ServedVersion
from tests.stores import START

DRIFT = "BundleInvalid: eye@2 does not reproduce its golden sample 1\n  mean diff 9.00 > 1"


def deployment(*states: str, status: str = "UPDATING", **told: Any) -> dict[str, Any]:
    return {"status": status, "replicas": [{"state": state} for state in states], **told}


@pytest.mark.parametrize(
    ("told", "is_ready", "words"),
    [
        (deployment("STARTING", "RUNNING"), True, ""),
        (deployment(status="HEALTHY", target_num_replicas=0), True, ""),
        (deployment(status="HEALTHY", target_num_replicas=1), False, "first replica starts"),
        (deployment("STARTING"), False, "first replica starts"),
        (deployment(status="DEPLOY_FAILED", message=DRIFT), False, "golden sample 1 mean diff 9"),
        (None, False, "not there yet"),
    ],
)
def test_a_deployment_is_judged(told: Mapping[str, Any] | None, is_ready: bool, words: str) -> None:
    readiness = judge_deployment(told)
    assert readiness.is_ready is is_ready
    assert words in readiness.reason


@pytest.mark.anyio
async def test_an_added_version_is_as_ready_as_its_row_says(database: Database) -> None:
    details = {"applications": {"sm4ll": {"deployments": {"Expert-eye@1": deployment("RUNNING")}}}}
    probe = DeploymentProbe(database, "sm4ll", {"eye@1": "Expert-eye@1"}, lambda: details)
    assert (await probe("eye@1")).is_ready
    assert "sm4ll experts deploy eye@2" in (await probe("eye@2")).reason
    for state, reason, is_ready in (
        (ServedState.WANTED, "", False),
        (ServedState.FAILED, DRIFT, False),
        (ServedState.READY, "", True),
        (ServedState.REMOVING, "", False),
    ):
        async with database.transaction() as session:
            await session.merge(
                ServedVersion(
                    version="eye@2",
                    bundle={},
                    home="",
                    deployed={},
                    state=state,
                    reason=reason,
                    created_by="key",
                    created_at=START,
                    updated_at=START + timedelta(seconds=1),
                )  # fmt: skip
            )
        readiness = await probe("eye@2")
        assert readiness.is_ready is is_ready
        assert "golden sample" in readiness.reason or state is not ServedState.FAILED
