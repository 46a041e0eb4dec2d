"""What is measured is in the table, and what is in the table is measured by somebody."""

import ast
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.observing.meter import MemoryMeter, require_labels
from serve.telemetry import METRICS, Metric
from tests.expositions import write_exposition

ROOT = Path(__file__).resolve().parents[1]
SOURCES = [
    path
    for folder in ("serve", "deployments")
    for path in (ROOT / folder).rglob("*.py")
    if path != ROOT / "serve/telemetry.py"
]
KINDS = {"add": "counter", "set": "gauge", "observe": "histogram"}
ENDINGS = {"seconds": "_seconds", "bytes": "_bytes", "usd": "_usd", "ratio": "_ratio"}


def recorded() -> Iterator[tuple[str, str, Path]]:
    """Every name that code gives to a meter, with the kind it takes it for: `meter.add("...")`, and
    `Gauges(meter, "...")`, which sets."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            names = [each.value for each in node.args if isinstance(each, ast.Constant)]
            found = [name for name in names if isinstance(name, str) and name[:6] == "sm4ll_"]
            if isinstance(node.func, ast.Attribute) and node.func.attr in KINDS:
                yield from ((name, KINDS[node.func.attr], path) for name in found)
            elif isinstance(node.func, ast.Name) and node.func.id == "Gauges":
                yield from ((name, "gauge", path) for name in found)


def test_every_metric_of_the_table_is_recorded_and_no_other() -> None:
    named = {name for name, _, _ in recorded()}
    assert sorted(METRICS.keys() - named) == []
    assert sorted(named - METRICS.keys()) == []


def test_every_metric_is_recorded_as_what_it_is() -> None:
    wrong = [
        (name, kind, path.name) for name, kind, path in recorded() if METRICS[name].kind != kind
    ]
    assert wrong == []


@pytest.mark.parametrize(("name", "metric"), METRICS.items(), ids=METRICS.keys())
def test_a_name_says_kind_and_unit(name: str, metric: Metric) -> None:
    """As Prometheus wants it: prometheus.io/docs/practices/naming."""
    assert metric.description.strip()
    assert len(metric.description) < 100
    assert name.startswith("sm4ll_")
    assert name.endswith("_total") == (metric.kind == "counter")
    if metric.unit != "1":
        assert name.removesuffix("_total").endswith(ENDINGS[metric.unit])
    else:
        assert not name.removesuffix("_total").endswith(tuple(ENDINGS.values()))
    assert bool(metric.buckets) == (metric.kind == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    # Serve's own, and what Prometheus keeps for itself.
    assert not {"application", "deployment", "replica", "le", "job", "instance"} & {*metric.labels}


def test_promtool_finds_nothing_to_say_about_names_and_help() -> None:
    binary = shutil.which("promtool")
    if binary is None:
        pytest.skip("no promtool on this machine (apt-get install prometheus)")
    meter = MemoryMeter()
    record = {"counter": meter.add, "gauge": meter.set, "histogram": meter.observe}
    for name, metric in METRICS.items():
        record[metric.kind](name, 1.0, **dict.fromkeys(metric.labels, "x"))
    told = subprocess.run(
        [binary, "check", "metrics"],
        input=write_exposition(meter),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")


def test_what_is_recorded_with_other_labels_or_as_another_kind_is_refused() -> None:
    require_labels("sm4ll_exposures_lost_total", "counter", {})
    with pytest.raises(ValueError, match="is a counter"):
        require_labels("sm4ll_exposures_lost_total", "gauge", {})
    with pytest.raises(ValueError, match="not a counter by"):
        MemoryMeter().add("sm4ll_refusals_total", route="/v1/tryon")
    with pytest.raises(KeyError):
        MemoryMeter().add("sm4ll_unheard_of_total")
