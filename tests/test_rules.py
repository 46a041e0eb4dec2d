"""Prometheus itself says that the rules are right: their syntax, and who is told when."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command
from typer.testing import CliRunner

from k8s.burn_rates import PACES, burn_groups
from k8s.health import health_groups
from k8s.observed import HERE, render_observability
from k8s.rules import Alert
from serve.cli import app
from serve.config import FamilyConfig
from serve.errors import ConfigError, DeadlineExceeded, Overloaded, RateLimited
from serve.objectives import FAILURES, check_objectives
from serve.settings import CONFIGS_DIR
from tests.promql import find_unknown

SCENARIOS = sorted((Path(__file__).parent / "promtool").glob("*.yaml"))
FAMILY = FamilyConfig.model_validate(
    yaml.safe_load("""
slo: {availability: 0.99, window_days: 28, min_bad_events: 3, experts: {top: {latency_s: 60}}}
experts: [{version: top@1}]
""")
)


def promtool(*arguments: str) -> "subprocess.CompletedProcess[str]":
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("no promtool on this machine (apt-get install prometheus)")
    return subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_then_only(scenario: Path) -> None:
    done = promtool("test", "rules", str(scenario))
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_rendered_for_another_family_is_what_prometheus_reads(tmp_path: Path) -> None:
    for name, text in render_observability(FAMILY).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    done = promtool("check", "config", str(tmp_path / "observability/prometheus.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rules found") == 2


def files_below(folder: Path) -> dict[str, str]:
    found = {*folder.glob("observability/**/*.*"), *folder.glob("dashboards/generated/*.json")}
    return {path.relative_to(folder).as_posix(): path.read_text() for path in found}


def test_committed_files_are_what_the_command_writes(tmp_path: Path) -> None:
    family = str(CONFIGS_DIR / "family.yaml")
    arguments = ["observability", "render", "--output", str(tmp_path), "--family", family]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    written, committed = files_below(tmp_path), files_below(HERE)
    assert written.keys() == committed.keys()
    stale = [name for name, text in written.items() if committed[name] != text]
    assert not stale, "run: sm4ll observability render --output k8s"


def test_rules_ask_only_for_what_is_recorded() -> None:
    for group in (*burn_groups(FAMILY), *health_groups(FAMILY)):
        for rule in group.rules:
            assert not find_unknown(rule.expr), rule


def test_every_alert_says_what_is_wrong_and_what_helps() -> None:
    alerts = [
        rule
        for group in (*burn_groups(FAMILY), *health_groups(FAMILY))
        for rule in group.rules
        if isinstance(rule, Alert)
    ]
    assert len({alert.name for alert in alerts}) == len(alerts)
    for alert in alerts:
        assert len(alert.summary) > 20, alert.name
        assert len(alert.runbook) > 60, alert.name
        for first, second in re.findall(r"\bsm4ll ([a-z]+) ?([a-z]*)", alert.runbook):
            command: Any = get_command(app)
            assert first in command.commands, alert.runbook
            below = getattr(command.commands[first], "commands", None)
            assert below is None or second in below, alert.runbook


def test_paces_are_those_of_the_workbook() -> None:
    assert [round(pace.factor(30), 6) for pace in PACES] == [14.4, 6, 3, 1]
    assert round(PACES[0].factor(28), 6) == 13.44


def test_an_expert_has_what_is_said_of_it_and_the_rest_from_all() -> None:
    top, eye = FAMILY.slo.of("top"), FAMILY.slo.of("eye")
    assert (top.availability, top.latency_s) == (0.99, 60)
    assert (eye.availability, eye.latency_s) == (0.99, 2.0)


def test_latency_that_no_bucket_can_tell_is_refused_with_those_that_can(tmp_path: Path) -> None:
    family = FAMILY.model_copy(update={"slo": FAMILY.slo.model_copy(update={"latency_s": 2.5})})
    with pytest.raises(ConfigError, match=r"latency_s of eye is 2\.5,.*take 2 or 3"):
        check_objectives(family, tmp_path / "family.yaml")


def test_failures_are_ours_alone() -> None:
    assert {"internal", Overloaded.code, DeadlineExceeded.code} <= set(FAILURES)
    assert not {RateLimited.code, "invalid_image", "cancelled", "packing_impossible"} & {*FAILURES}
