"""Every panel of every dashboard shows something of a running cluster that does a little work."""

import json
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

import httpx2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from k8s.dashboards.model import Kind, Limits, Panel
from k8s.observed import HERE, RULES, build_dashboards
from k8s.queries import PanelUnit, Query, level, rate
from serve.cli import app
from serve.client import ApiError, Client
from serve.commands.panel_drawing import _scale, draw_panel, tell
from serve.commands.panels import Line, Span, fill_in, read_panel
from serve.demo.cases import demo_cases
from serve.designs import Arm, Stage
from serve.errors import NotFound
from serve.schemas.experiments import NewExperiment
from serve.schemas.jobs import JobOptions
from serve.schemas.rollouts import NewRollout
from serve.schemas.tryon import TryOnOptions
from tests.pictures import box_mask, encoded, photo
from tests.prometheus import started_prometheus
from tests.up import Up

GIVE_UP_S = 60.0
WINDOW_S = 10.0
"""Ray's processes report every 2 s there."""
PANELS = {
    f"{dashboard.name}: {row.title}: {panel.title}": panel
    for dashboard in build_dashboards()
    for row in dashboard.rows
    for panel in row.panels
}
EMPTY = {
    "gpu-packing: Reserved, busy, held: Busy for what is reserved": "no GPU is reserved",
    "gpu-packing: Devices, by NVML: Memory in use": "no GPU",
    "gpu-packing: Devices, by NVML: Memory in use, share": "no GPU",
    "gpu-packing: Devices, by NVML: A kernel runs": "no GPU",
}
"""What that cluster has nothing for, and why."""
CASE = next(case for case in demo_cases() if case.expert == "top")
PRODUCT = CASE.product_path.read_bytes()
GIVEN = (encoded(photo()), encoded(photo(64, 64, seed=1)), encoded(box_mask()))
TOP = TryOnOptions(expert="top")
JOB = JobOptions(expert="top", version="noop", webhook_url="https://shop.invalid/hook")
TRIAL = NewExperiment(
    id="panels",
    expert="top",
    unit="user",
    arms=(
        Arm(name="control", version="top@noop", weight=5_000),
        Arm(name="doomed", version="top@doomed", weight=5_000),
    ),
    start=True,
)
PLAN = NewRollout(
    expert="top",
    version="top@doomed",
    stages=(Stage(share=100, min_exposures=10**6), Stage(share=10_000)),
)


def somebody(at: int) -> bytes:
    """A picture that no segmenter has seen: what is remembered asks none."""
    with Image.open(CASE.person_path) as person:
        seen = person.crop((at, at, person.width, person.height))
        return encoded(np.asarray(seen), "JPEG")


def is_about_rollouts(name: str) -> bool:
    return any("rollout" in query.expr for query in PANELS[name].queries)


@dataclass
class Onlooker:
    """Two tenants who work while somebody looks at what the panels show of it."""

    http: httpx2.Client
    prometheus: str
    tenants: tuple[Client, Client]
    begin_s: float = field(default_factory=time.time)
    empty: set[str] = field(default_factory=lambda: PANELS.keys() - EMPTY.keys())

    def fill(self, names: Collection[str]) -> None:
        """Work until each of these panels shows something; they may all be empty in the end."""
        turn = 0
        while self.empty & set(names) and time.time() < self.begin_s + GIVE_UP_S:
            self._work(turn)
            turn += 1
            span = Span(self.begin_s, time.time(), 1.0, WINDOW_S)
            for name in sorted(self.empty):
                if read_panel(self.http, self.prometheus, PANELS[name], span):
                    self.empty.remove(name)

    def _work(self, turn: int) -> None:
        """One of each that leaves a trace, whatever comes of it."""
        for at, client in enumerate(self.tenants):
            unit = TOP.model_copy(update={"unit": f"user-{turn}-{at}"})
            person = somebody(2 * turn + at)
            client.tryon(TOP.model_copy(update={"version": "noop"}), person, PRODUCT)
            for options in (unit, TOP.model_copy(update={"version": "doomed"})):
                with suppress(ApiError):
                    client.tryon(options, *GIVEN)
            with pytest.raises(ApiError):
                client.tryon(TOP, b"no picture", GIVEN[1])
        self.tenants[0].submit_job(JOB, *GIVEN)


@contextmanager
def compared(client: Client) -> Iterator[None]:
    client.experiments.create(TRIAL)
    try:
        yield
    finally:
        client.experiments.end(TRIAL.id)


@contextmanager
def rolled_out(client: Client) -> Iterator[None]:
    rollout = client.rollouts.start(PLAN)
    try:
        yield
    finally:
        with suppress(ApiError):  # it may have gone back by itself
            client.rollouts.abort(rollout.id)


@pytest.mark.ray
def test_every_panel_shows_what_a_running_cluster_does(up: Up, tmp_path: Path) -> None:
    tokens = [up.open_tenant(f"panels-{name}") for name in ("a", "b")]
    rules = sorted((HERE / RULES).glob("*.yaml"))
    page = tmp_path / "dashboards.html"
    with (
        started_prometheus(up.metrics_url, rules) as url,
        Client(up.url, up.key) as admin,
        Client(up.url, tokens[0]) as first,
        Client(up.url, tokens[1]) as second,
        httpx2.Client(timeout=30) as http,
    ):
        onlooker = Onlooker(http, url, (first, second))
        with compared(admin):
            onlooker.fill({name for name in PANELS if not is_about_rollouts(name)})
        with rolled_out(admin):
            onlooker.fill(PANELS)
        arguments = ["--prometheus", url, "-o", str(page), "--minutes", "1", "--window", "10"]
        drawn = CliRunner().invoke(app, ["observability", "preview", *arguments])
    assert not onlooker.empty
    assert drawn.exit_code == 0, drawn.output
    text = page.read_text()
    assert text.count("<svg") == len(PANELS)
    assert "panels-a" in text
    assert text.count("no data") == len(EMPTY)


NOW = Span(0.0, 100.0, 10.0, 60.0)
LINES = [
    Line("a & b", [(at * 10.0, at * 1.0) for at in range(11)]),
    Line("late", [(90.0, 3.0), (100.0, 2.0)]),
    Line("once", [(50.0, 1.0)]),
]


@pytest.mark.parametrize("kind", ["lines", "stacked", "number", "bars"])
@pytest.mark.parametrize("lines", [LINES, LINES[2:], []], ids=["some", "one", "none"])
def test_panel_is_drawn_whatever_there_is(kind: Kind, lines: list[Line]) -> None:
    panel = Panel("<b>", [Query("up", "seconds")], "Of all.", kind, limits=Limits(1, 5))
    root = ET.fromstring(draw_panel(panel, lines, NOW))
    text = " ".join(root.itertext())
    assert "<b>" in text
    assert ("no data" in text) == (not lines)
    if kind != "number" and len(lines) > 1:
        assert "a & b" in text


def test_stacked_panel_adds_up() -> None:
    panel = Panel("Both", [Query("up", "1")], "Of all.", "stacked")
    drawn = draw_panel(panel, [LINES[0], LINES[0]], NOW)
    assert ">40<" in drawn  # the axis ends above 10 + 10


@pytest.mark.parametrize(
    ("value", "unit", "told"),
    [
        (0.0123, "seconds", "12.3 ms"),
        (90, "seconds", "90 s"),
        (0, "seconds", "0 s"),
        (3 * 2**30, "bytes", "3 GiB"),
        (1000 * 2**10, "bytes", "1,000 KiB"),
        (0.125, "ratio", "12.5 %"),
        (-103.0, "ratio", "-10,300 %"),
        (12_500, "1/s", "12.5k/s"),
        (1.906, "usd/h", "$1.91/h"),
        (0.0001, "usd", "$0.0001"),
    ],
)
def test_values_are_told_as_a_person_says_them(value: float, unit: PanelUnit, told: str) -> None:
    assert tell(value, unit) == told


@pytest.mark.parametrize("most", [600 * 2**10, 990 * 2**10, 7 * 2**20, 700 * 2**30])
def test_axis_of_bytes_ends_where_few_letters_say_it(most: float) -> None:
    assert most <= _scale(most, "bytes")
    assert len(tell(_scale(most, "bytes"), "bytes")) <= len("500 MiB")


def test_queries_are_filled_in_as_grafana_does() -> None:
    query = rate("sm4ll_tryons_total", ("code",), 'expert=~"$expert"')
    expected = 'sum by (code) (rate(ray_sm4ll_tryons_total{expert=~".*"}[60s]))'
    assert fill_in(query.expr, 60) == expected


def answering(status: str, **fields: object) -> httpx2.Client:
    body = json.dumps({"status": status, **fields})
    return httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200, text=body)))


def test_lines_are_named_by_their_labels_and_have_only_numbers() -> None:
    panel = Panel("Permits", [level("sm4ll_permits", ("version",))], "Of all routers.")
    series = {"metric": {"version": "top@1"}, "values": [[10, "NaN"], [20, "3"], [30, "+Inf"]]}
    nothing = {"metric": {"version": "eye@1"}, "values": [[10, "NaN"]]}
    with answering("success", data={"result": [series, nothing]}) as http:
        assert read_panel(http, "http://there", panel, NOW) == [Line("top@1", [(20.0, 3.0)])]


def test_what_is_no_prometheus_is_said() -> None:
    panel = Panel("Permits", [level("sm4ll_permits")], "Of all routers.")
    with answering("error", error="parse error") as http, pytest.raises(NotFound, match="refuses"):
        read_panel(http, "http://there", panel, NOW)
    with answering("fine") as http, pytest.raises(NotFound, match="refuses|does not answer"):
        read_panel(http, "http://there", panel, NOW)
    with httpx2.Client() as http, pytest.raises(NotFound, match="no Prometheus at"):
        read_panel(http, "http://127.0.0.1:1", panel, NOW)
