"""`sm4ll top` shows what the metrics say, and all of it fits."""

import io
import json
import os
import pty
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from serve.cli import app
from serve.client import Client
from serve.commands.top_drawing import Place, draw_top
from serve.commands.top_sample import Sample, take_sample
from serve.commands.top_words import tell_time
from serve.errors import NotFound
from serve.exposition import Reading, parse_exposition
from serve.interval import Interval
from serve.observing.meter import MemoryMeter
from tests.expositions import write_exposition
from tests.up import Up

EXPERTS = ("eye", "shoes", "face", "top", "bottom", "dress", "bg")


def serve_tryon(meter: MemoryMeter, version: str, seconds: float = 1.0, code: str = "ok") -> None:
    expert = version.split("@")[0]
    status = "200" if code == "ok" else "500"
    meter.add("sm4ll_http_requests_total", route="/v1/tryon", method="POST", status=status)
    meter.add("sm4ll_tryons_total", expert=expert, version=version, way="request", code=code)
    meter.add("sm4ll_tenant_requests_total", tenant="acme", code=code)
    if code != "ok":
        meter.add("sm4ll_refusals_total", route="/v1/tryon", code=code)
        return
    own = {"expert": expert, "version": version}
    meter.observe("sm4ll_tryon_duration_seconds", seconds, way="request", **own)
    meter.add("sm4ll_images_total", **own)
    meter.add("sm4ll_gpu_seconds_total", seconds, **own)
    meter.add("sm4ll_cost_usd_total", seconds / 1000, **own)
    meter.add("sm4ll_tenant_gpu_seconds_total", seconds, tenant="acme")
    meter.add("sm4ll_replica_busy_seconds_total", seconds, version=version)
    meter.observe("sm4ll_stage_duration_seconds", seconds, stage="expert", expert=expert)


def stand(meter: MemoryMeter) -> None:
    """What stays as it is between two pictures."""
    for expert in EXPERTS:
        meter.set("sm4ll_replicas", 2, version=f"{expert}@1")
    for waiting, gpu_s, job_class in ((3, 4.5, "interactive"), (2, 1.5, "batch")):
        of = {"version": "top@1", "class": job_class}
        meter.set("sm4ll_queue_depth", waiting, **of)
        meter.set("sm4ll_queue_gpu_seconds", gpu_s, **of)
    meter.set("sm4ll_jobs", 12, **{"state": "queued", "class": "batch"})
    meter.set("sm4ll_job_oldest_seconds", 90, **{"class": "batch"})
    meter.set("sm4ll_replicas", 1, version="top@2")
    for arm in ("control", "challenger"):
        meter.add("sm4ll_exposures_total", 4, experiment="sleeves", arm=arm, outcome="ok")


def sample_of(change: Callable[[MemoryMeter], None]) -> Sample:
    """What is seen after 10 s in which that happened."""
    meter = MemoryMeter()
    stand(meter)
    serve_tryon(meter, "eye@1")
    before = Reading(0.0, parse_exposition(write_exposition(meter)))
    change(meter)
    now = Reading(10.0, parse_exposition(write_exposition(meter)))
    return take_sample(Interval(before, now), 10.0, 3700.0)


def busy_minute(meter: MemoryMeter) -> None:
    for _ in range(15):
        serve_tryon(meter, "top@1")
    for _ in range(5):
        serve_tryon(meter, "top@2", 0.2)
    serve_tryon(meter, "top@2", code="generation_failed")


def text_of(sample: Sample, width: int, height: int) -> list[str]:
    console = Console(width=width, height=height, record=True, file=io.StringIO())
    console.print(draw_top(sample, Place("http://127.0.0.1:8080/metrics", width, height, (1, 2))))
    return console.export_text().rstrip("\n").split("\n")


def test_version_shows_its_share_rate_utilisation_and_queue() -> None:
    sample = sample_of(busy_minute)
    rows = {row.version: row for row in sample.versions}
    top = rows["top@1"]
    assert top.share == pytest.approx(15 / 21)
    assert top.tryons_per_s == pytest.approx(1.5)
    assert (top.queued, top.queued_gpu_s) == (5, 6.0)
    assert top.busy == pytest.approx(15 / 10 / 2)
    assert top.duration.is_recent
    assert 0.5 <= (top.duration.p50_s or 0) <= 1.0
    assert rows["top@2"].failures_per_s == pytest.approx(0.1)
    # Nothing asked it lately: what it took before is shown as such.
    assert not rows["eye@1"].duration.is_recent
    assert rows["eye@1"].duration.p50_s is not None
    assert rows["bg@1"].duration.p50_s is None


def test_whole_cluster_is_summed_up() -> None:
    sample = sample_of(busy_minute)
    assert sample.requests_per_s == pytest.approx(2.1)
    assert sample.failed_per_s == pytest.approx(0.1)
    assert sample.refusals == {"generation_failed": pytest.approx(0.1)}
    assert sample.gpu_s_per_s == pytest.approx(1.6)
    assert (sample.jobs_waiting, sample.oldest_job_s) == (12, 90.0)
    assert [row.tenant for row in sample.tenants] == ["acme"]
    assert {row.arm: row.share for row in sample.arms} == {"control": 0.5, "challenger": 0.5}
    assert sample.stages_s == {"expert": pytest.approx(16 / 20)}


def test_arms_are_of_the_same_time_as_the_versions_beside_them() -> None:
    def go_on(meter: MemoryMeter) -> None:
        for outcome in ("ok", "ok", "failure"):
            meter.add("sm4ll_exposures_total", experiment="sleeves", arm="control", outcome=outcome)
        meter.add("sm4ll_exposures_total", experiment="sleeves", arm="challenger", outcome="ok")

    control, challenger = sample_of(go_on).arms
    assert control.share == pytest.approx(0.75)
    assert challenger.share == pytest.approx(0.25)
    assert control.failure_share == pytest.approx(1 / 3)
    assert control.exposures == 7


def test_quantile_above_the_last_bound_is_told_as_such() -> None:
    slow = sample_of(lambda meter: serve_tryon(meter, "bg@1", 300.0))
    assert "p95 >60s" in "\n".join(text_of(slow, 110, 34))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (110, 34), (160, 50), (60, 16)])
def test_picture_fits_and_has_what_matters(width: int, height: int) -> None:
    lines = text_of(sample_of(busy_minute), width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    whole = "\n".join(lines)
    assert "top@1" in whole
    assert "0 ✓" in whole
    if width >= 80:
        assert all(f"{expert}@1" in whole for expert in EXPERTS)
        assert "sleeves" in whole
        assert "acme" in whole


def test_pixel_outside_is_not_to_be_overlooked() -> None:
    def happen(meter: MemoryMeter) -> None:
        meter.add("sm4ll_outside_violations_total", expert="top", version="top@1")

    lines = text_of(sample_of(happen), 80, 24)
    assert any("outside" in line and "1 ✗" in line for line in lines)
    assert any("top@1 ✗1" in line for line in lines)


def test_more_versions_than_lines_shows_the_busy_ones() -> None:
    def happen(meter: MemoryMeter) -> None:
        for number in range(40):
            meter.set("sm4ll_replicas", 1, version=f"bg@{number}")
        serve_tryon(meter, "bg@37")

    lines = text_of(sample_of(happen), 80, 24)
    assert len(lines) < 24
    assert any("bg@37" in line for line in lines)
    assert any(" of 47)" in line for line in lines)


def test_cluster_that_has_done_nothing_is_a_picture_too() -> None:
    empty = Reading(0.0, {})
    sample = take_sample(Interval(empty, empty), 0.0, None)
    assert "none yet" in "\n".join(text_of(sample, 80, 24))
    assert json.loads(json.dumps(sample.versions)) == []


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.0012, "1.2ms"), (0.25, "250ms"), (0.9999, "1.0s"), (75, "75.0s"), (600, "10m")]
    + [(3700, "1h01"), (90_000, "1d01h"), (None, "–")],
)
def test_times_stay_short(seconds: float | None, told: str) -> None:
    assert tell_time(seconds) == told


@pytest.fixture
def node() -> Iterator[str]:
    """The URL of an exporter on which one more try-on has happened each time it is asked."""
    meter = MemoryMeter()
    stand(meter)

    class Exporter(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            serve_tryon(meter, "shoes@1")
            body = write_exposition(meter).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Exporter) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def test_one_sample_is_there_for_programs(node: str) -> None:
    answer = CliRunner().invoke(app, ["top", "--json", "--window", "0.1", "--metrics", node])
    assert answer.exit_code == 0
    sample = json.loads(answer.stdout)
    row = next(one for one in sample["versions"] if one["version"] == "shoes@1")
    assert row["tryons_per_s"] == pytest.approx(1 / sample["interval_s"])


def test_live_view_ends_with_q_and_leaves_the_terminal_as_it_was(node: str) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "serve.cli", "top", "--interval", "0.1", "--metrics", node]
    environ = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    shown = read_until(ours, b"shoes@1")
    assert b"\x1b[?1049h" in shown  # the alternate screen
    os.write(ours, b"q")
    rest = read_until(ours, b"\x1b[?1049l")
    assert process.wait(10) == 0, (shown, rest)
    os.close(ours)


def read_until(terminal: int, wanted: bytes) -> bytes:
    shown = b""
    while wanted not in shown:
        ready, _, _ = select.select([terminal], [], [], 20)
        assert ready, shown
        shown += os.read(terminal, 65536)
    return shown


def test_where_no_cluster_runs_it_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SM4LL_DATA_DIR", str(tmp_path))
    answer = CliRunner().invoke(app, ["top", "--once"])
    assert isinstance(answer.exception, NotFound)
    assert str(tmp_path) in str(answer.exception)
    assert "sm4ll up" in answer.exception.remedy


@pytest.mark.ray
def test_running_cluster_is_shown(up: Up) -> None:
    with Client(up.url, up.key) as client:
        client.models()
    for _ in range(20):  # Ray's processes report every 2 s
        answer = CliRunner().invoke(
            app, ["top", "--json", "--window", "1", "--metrics", up.metrics_url]
        )
        assert answer.exit_code == 0, answer.exception
        sample = json.loads(answer.stdout)
        if sample["requests"]:
            break
    assert sample["requests"] > 0
    assert sample["up_s"] > 0
    assert sample["violations"] == 0
