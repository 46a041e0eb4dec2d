"""The autoscaling policy as Serve's controller calls it, with contexts of its own class."""

import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ray import cloudpickle
from ray.serve._private.common import DeploymentID, TimeStampedValue
from ray.serve.autoscaling_policy import _apply_app_level_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from deployments.bundle import load_family
from deployments.options import expert_options, group_experts, router_options
from serve.admission.load import report_gate, report_queued
from serve.config import RouterConfig
from serve.scaling import POLICY, scale_by_load

Report = Mapping[str, float]
EYE = DeploymentID("Expert-eye@1", "sm4ll")
SHARED = DeploymentID("Experts-klein", "sm4ll")
ROUTER = DeploymentID("Router", "sm4ll")
RUNNER = DeploymentID("JobRunner", "sm4ll")


def told(*versions: str, downscale_delay_s: float = 60.0) -> dict[str, Any]:
    return {
        "versions": list(versions),
        "target_drain_s": 10.0,
        "upscale_delay_s": 0.0,
        "downscale_delay_s": downscale_delay_s,
    }


@dataclass
class Fleet:
    """Deployments of an application, and what their replicas report."""

    targets: dict[DeploymentID, int]
    told: dict[DeploymentID, dict[str, Any]] = field(default_factory=dict)
    reports: dict[DeploymentID, list[Report]] = field(default_factory=dict)
    num_requests: dict[DeploymentID, float] = field(default_factory=dict)
    bounds: tuple[int, int] = (1, 8)
    now_s: float = 1000.0
    states: dict[DeploymentID, dict[str, Any]] = field(default_factory=dict)

    def contexts(self) -> dict[DeploymentID, AutoscalingContext]:
        return {deployment: self._context(deployment) for deployment in self.targets}

    def _context(self, deployment: DeploymentID) -> AutoscalingContext:
        raw: dict[str, dict[Any, list[TimeStampedValue]]] = {}
        for replica, report in enumerate(self.reports.get(deployment, ())):
            for name, value in report.items():
                stale = TimeStampedValue(self.now_s - 2.0, 1e6)
                series = [stale, TimeStampedValue(self.now_s - 0.5, value)]
                raw.setdefault(name, {})[replica] = series
        return AutoscalingContext(
            deployment_id=deployment,
            deployment_name=deployment.name,
            app_name=deployment.app_name,
            current_num_replicas=self.targets[deployment],
            target_num_replicas=self.targets[deployment],
            running_replicas=[],
            total_num_requests=self.num_requests.get(deployment, 0.0),
            total_queued_requests=0.0,
            aggregated_metrics={},
            raw_metrics=raw,
            capacity_adjusted_min_replicas=self.bounds[0],
            capacity_adjusted_max_replicas=self.bounds[1],
            policy_state=self.states.get(deployment, {}),
            last_scale_up_time=None,
            last_scale_down_time=None,
            current_time=self.now_s,
            config=AutoscalingConfig(
                min_replicas=self.bounds[0],
                max_replicas=max(1, self.bounds[1]),
                target_ongoing_requests=4.0,
                upscale_delay_s=0.0,
                downscale_delay_s=0.0,
                policy={"policy_kwargs": self.told.get(deployment, {})},
            ),
        )

    def tick(self, passed_s: float = 0.1) -> dict[DeploymentID, int]:
        """One turn of the controller: the policy inside Serve's own wrapper."""
        self.now_s += passed_s
        wrapped = _apply_app_level_autoscaling_config(scale_by_load)
        decisions: dict[DeploymentID, int]
        decisions, self.states = wrapped(self.contexts())
        self.targets = {**self.targets, **decisions}
        return decisions


def of_eye(**reports: list[Report]) -> Fleet:
    by_deployment = {DeploymentID(name, "sm4ll"): said for name, said in reports.items()}
    return Fleet({EYE: 1, ROUTER: 1, RUNNER: 1}, {EYE: told("eye@1")}, by_deployment)


def test_what_waits_and_runs_in_every_router_is_summed() -> None:
    one = {"waiting_s:eye@1": 20.0, "running_s:eye@1": 5.0}
    assert of_eye(Router=[one]).tick()[EYE] == 3
    assert of_eye(Router=[one, one]).tick()[EYE] == 5


def test_what_every_runner_sees_in_the_database_counts_once_and_their_gates_each() -> None:
    runner = {"queued_s:eye@1": 30.0, "running_s:eye@1": 4.0}
    behind = {"queued_s:eye@1": 25.0, "running_s:eye@1": 4.0}
    fleet = of_eye(Router=[{"waiting_s:eye@1": 10.0}], JobRunner=[runner, behind])
    assert fleet.tick()[EYE] == 5  # 30 + 4 + 4 + 10, in tens


def test_versions_that_share_replicas_are_one_load() -> None:
    report = {"waiting_s:eye@k": 18.0, "waiting_s:top@k": 18.0, "waiting_s:eye@1": 100.0}
    fleet = Fleet({SHARED: 1, ROUTER: 1}, {SHARED: told("eye@k", "top@k")}, {ROUTER: [report]})
    assert fleet.tick()[SHARED] == 4


def test_bounds_hold_as_the_cluster_adjusts_them() -> None:
    fleet = of_eye(Router=[{"waiting_s:eye@1": 1e9}])
    assert fleet.tick()[EYE] == 8
    fleet.bounds = (1, 4)  # target_capacity was halved
    assert fleet.tick()[EYE] == 4
    fleet.bounds = (2, 4)
    fleet.reports[ROUTER] = [{"waiting_s:eye@1": 0.0}]
    fleet.tick()
    assert fleet.tick(61.0)[EYE] == 2


def test_serve_adds_no_delay_of_its_own() -> None:
    fleet = of_eye(Router=[{"waiting_s:eye@1": 50.0}])
    assert fleet.tick()[EYE] == 5
    fleet.reports[ROUTER] = [{"waiting_s:eye@1": 0.0}]
    assert [fleet.tick(seconds)[EYE] for seconds in (0.1, 59.0, 1.1)] == [5, 5, 1]


def test_idle_replicas_go_to_zero_where_the_family_allows_it() -> None:
    fleet = of_eye(Router=[{"waiting_s:eye@1": 30.0}])
    fleet.bounds = (0, 8)
    assert fleet.tick()[EYE] == 3
    fleet.reports[ROUTER] = [{"waiting_s:eye@1": 0.0}]
    fleet.tick()
    # Serve goes to zero from one replica only, in a step of its own.
    assert [fleet.tick(61.0)[EYE], fleet.tick()[EYE]] == [1, 0]
    fleet.reports[ROUTER] = [{"waiting_s:eye@1": 0.2}]
    assert fleet.tick()[EYE] == 1


def test_without_reports_ongoing_requests_count_and_a_gap_takes_nobody_away() -> None:
    fleet = of_eye()
    fleet.num_requests[EYE] = 12.0  # a replica is to have 4
    assert fleet.tick()[EYE] == 3
    fleet.num_requests[EYE] = 0.0
    assert [fleet.tick(seconds)[EYE] for seconds in (0.1, 59.0, 1.1)] == [3, 3, 1]


def test_what_is_no_expert_goes_by_its_ongoing_requests() -> None:
    fleet = of_eye(Router=[{"waiting_s:eye@1": 0.0}])
    fleet.num_requests[ROUTER] = 9.0
    assert fleet.tick()[ROUTER] == 3


@pytest.mark.parametrize(
    "garbage",
    [
        {"waiting_s:eye@1": float("nan")},
        {"waiting_s:eye@1": -5.0, "running_s:eye@1": float("inf")},
        {"waiting_s": 3.0, ":": 1.0, "": 2.0, "other:eye@1": 99.0},
        {"waiting_s:eye@1": "many"},
        {"waiting_s:eye@1": None},
    ],
)
def test_garbage_in_a_report_changes_nothing_and_raises_nothing(garbage: Any) -> None:
    fleet = of_eye(Router=[garbage])
    fleet.targets[EYE] = 3
    assert fleet.tick()[EYE] == 3


class Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def test_what_cannot_be_decided_stays_is_logged_once_and_stops_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = Heard()
    monkeypatch.setattr(logging.getLogger("ray.serve"), "handlers", [heard])
    fleet = of_eye(Router=[{"waiting_s:eye@1": 20.0, "waiting_s:top@k": 20.0}])
    fleet.targets[SHARED] = 1
    fleet.told[SHARED] = told("top@k")
    fleet.told[EYE] = {"versions": ["eye@1"], "target_drain_s": -1}
    fleet.targets[EYE] = 4
    for _ in range(3):
        decisions = fleet.tick()
        assert (decisions[EYE], decisions[SHARED]) == (4, 2)
    assert len(heard.messages) == 1
    assert "Expert-eye@1" in heard.messages[0]
    fleet.told[EYE] = told("eye@1")
    fleet.reports[ROUTER] = [{"waiting_s:eye@1": 55.0}]
    assert fleet.tick()[EYE] == 6


def test_a_decision_for_a_hundred_deployments_is_a_small_part_of_the_controllers_turn() -> None:
    names = [f"eye@{number}" for number in range(100)]
    deployments = [DeploymentID(f"Expert-{name}", "sm4ll") for name in names]
    report = {f"{kind}:{name}": 1.0 for kind in ("waiting_s", "running_s") for name in names}
    fleet = Fleet(
        {**dict.fromkeys(deployments, 1), ROUTER: 1},
        {one: told(name) for one, name in zip(deployments, names, strict=True)},
        {ROUTER: [report] * 4},
    )
    contexts = fleet.contexts()
    started_s = time.process_time()
    for _ in range(10):
        scale_by_load(contexts)
    assert (time.process_time() - started_s) / 10 < 0.02  # of 0.1 s


class Gate:
    def backlog(self) -> Mapping[str, float]:
        return {"eye@1": 3.0, "top@1": 0.0}

    def running(self) -> Mapping[str, float]:
        return {"eye@1": 1.5, "top@1": 0.0}


def test_a_gate_reports_every_version_and_a_runner_what_is_queued() -> None:
    assert report_gate(Gate()) == {
        "waiting_s:eye@1": 3.0,
        "waiting_s:top@1": 0.0,
        "running_s:eye@1": 1.5,
        "running_s:top@1": 0.0,
    }
    assert report_queued({"eye@1": 7.0}) == {"queued_s:eye@1": 7.0}


def test_experts_options_tell_the_policy_what_it_reads(family: Path) -> None:
    groups = {group.name: group for group in group_experts(*load_family(family))}
    options = expert_options(groups["Expert-top@1"])
    config = AutoscalingConfig(**options["autoscaling_config"])
    assert config.policy.is_default_policy_function()
    assert config.policy.policy_kwargs["versions"] == ["top@1"]
    assert (config.upscale_delay_s, config.downscale_delay_s) == (0.0, 0.0)
    fleet = of_eye(Router=[{"waiting_s:top@1": 25.0}])
    fleet.told[EYE] = {**config.policy.policy_kwargs, "upscale_delay_s": 2.0}
    assert [fleet.tick(seconds)[EYE] for seconds in (0.1, 1.0, 1.1)] == [1, 1, 3]


def test_routers_report_within_seconds_also_where_their_number_is_fixed() -> None:
    router = RouterConfig()
    fixed = router.autoscaling.model_copy(update={"min_replicas": 2, "max_replicas": 2})
    options = router_options(router.model_copy(update={"autoscaling": fixed}))
    config = options["autoscaling_config"]
    assert (config["min_replicas"], config["max_replicas"]) == (2, 2)
    assert config["metrics_interval_s"] <= 1.0 < config["look_back_period_s"]


def test_the_policy_travels_to_the_controller_as_serve_sends_it_and_brings_no_torch() -> None:
    module, _, name = POLICY.partition(":")
    scaling = sys.modules[module]
    cloudpickle.register_pickle_by_value(scaling)
    try:
        packed = cloudpickle.dumps(getattr(scaling, name))
    finally:
        cloudpickle.unregister_pickle_by_value(scaling)
    code = (
        "import pickle, sys; policy = pickle.loads(sys.stdin.buffer.read()); "
        "assert policy({}) == ({}, {}); "
        "print(sorted({'torch', 'cv2', 'sqlalchemy', 'fastapi'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], input=packed, capture_output=True)
    assert done.stdout.decode().strip() == "[]", done.stderr.decode()
