"""What an experiment has shown, as JSON, as a page and as a table: to each tenant its own."""

import asyncio
import re
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi import FastAPI
from rich.console import Console
from starlette.testclient import TestClient
from typer.testing import CliRunner

from serve.cli import app
from serve.client import Client
from serve.commands import report as command
from serve.commands.report import draw_results, write_report
from serve.designs import ExperimentDesign
from serve.experiments.allocation import allocate
from serve.experiments.report import MAX_PAIRS, NUM_LOOKS, Period, Question, build_report
from serve.policy import TenantPolicy
from serve.reporting.page import draw_plots, render_report
from serve.schemas.reports import MetricResult, Report
from serve.services import Services
from serve.store.columns import utc_now
from serve.store.exposures import NewExposure, Seen, insert_exposures
from serve.store.tables import AssetKind
from tests.exposures import expose, failed
from tests.fakes import build_local_api
from tests.pictures import encoded, photo
from tests.stores import START
from tests.tenants import LOCAL_TENANT, LOCAL_TOKEN, add_key_to, bearer
from tests.test_tenants_command import Through

FAMILY = Path(__file__).parent / "bench" / "family.yaml"
DESIGN = ExperimentDesign.model_validate(
    {
        "id": "tint",
        "title": "Tint & <shade>",
        "expert": "eye",
        "arms": [
            {"name": "control", "version": "eye@1", "weight": 5_000},
            {"name": "challenger", "version": "eye@2", "weight": 5_000},
        ],
    }
)
HALF = allocate({"control": 5_000, "challenger": 5_000})


def question(**named: Any) -> Question:
    given: dict[str, Any] = {
        "design": DESIGN,
        "state": "running",
        "periods": {1: Period(allocation=HALF, at=START)},
        "caller_tenant": "acme",
        "tenant": None,
        "revision": None,
        "now": START + timedelta(days=1),
    }
    return Question(**given | named)


def seen_of(number: int, *, worse_by: float, seed: int = 7) -> list[Seen]:
    """Round glasses are what the challenger spoils."""
    dice = np.random.default_rng(seed)
    seen = []
    for at in range(number):
        arm = ("control", "challenger")[at % 2]
        shape = ("round", "aviator")[at // 2 % 2]
        is_spoilt = arm == "challenger" and shape == "round"
        colour = float(dice.normal(3 + worse_by * is_spoilt, 1))
        named = {"arm": arm, "unit": f"u{at}", "category": shape, "tags": {"season": "ss27"}}
        at_time = START + timedelta(minutes=at)
        tenant = ("acme", "other")[at // 4 % 2]
        seen.append(expose(tenant_id=tenant, at=at_time, metrics={"colour": colour}, **named))
    return seen


def pairs_of(number: int, tenant: str = "acme") -> list[Seen]:
    seen = []
    for at in range(number):
        live = expose(tenant_id=tenant, unit=f"p{at}", metrics={"colour": 3.0, "pattern": 0.9})
        kept = {name: f"ast_{name}{at}" for name in ("live", "shadow", "before", "product")}
        metrics = {"colour": 3.0 + at / 10, "pattern": 0.9}
        shadow = expose(
            id=live.id,
            tenant_id=tenant,
            is_shadow=True,
            arm="challenger",
            unit=live.unit,
            metrics=metrics,
            pictures=kept if at % 2 else None,
        )
        seen += [live, shadow]
    return seen


def result_of(report: Report, metric: str) -> MetricResult:
    return next(one for one in report.metrics if one.metric == metric)


def test_report_says_what_to_make_of_the_primary_metric() -> None:
    report = build_report(question(), seen_of(400, worse_by=4))
    (headline,) = report.headlines
    assert headline.decision == "worse"
    assert headline.words.startswith("eye@2 against eye@1, colour of the product: worse by")
    colour = result_of(report, "colour")
    assert colour.low is not None
    assert colour.effect is not None
    assert 0 < colour.low < colour.effect
    assert (colour.control.units, colour.challenger.units) == (200, 200)
    assert result_of(report, "errors").decision == "unknown"  # 200 say little of 1 %
    assert not report.split.is_mismatch
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_slices_tell_where_it_is_and_only_there() -> None:
    report = build_report(question(), seen_of(800, worse_by=4))
    found = {(one.by, one.value): one for one in report.slices if one.result.metric == "colour"}
    assert found["category", "round"].decision == "worse"
    assert found["category", "aviator"].decision in ("unknown", "equal")
    assert {by for by, _ in found} == {"category", "tenant"}  # all have one season
    assert found["category", "round"].adjusted_p > found["category", "round"].result.p_value
    alone = build_report(question(tenant="acme"), seen_of(80, worse_by=4))
    assert {one.by for one in alone.slices} == {"category"}


def test_equal_arms_are_called_worse_in_no_slice() -> None:
    for seed in range(5):
        report = build_report(question(), seen_of(400, worse_by=0, seed=seed))
        assert report.headlines[0].decision in ("equal", "unknown", "not_worse")
        assert not [one for one in report.slices if one.decision in ("better", "worse")]


def test_effect_is_followed_over_time() -> None:
    (series,) = build_report(question(), seen_of(600, worse_by=4)).series
    assert len(series.looks) == NUM_LOOKS
    assert series.looks[0].low is None  # ten units a side say nothing
    widths = [one.high - one.low for one in series.looks if one.high and one.low]
    assert widths[-1] < widths[0] / 2
    assert [one.at for one in series.looks] == sorted(one.at for one in series.looks)


def test_split_that_is_not_the_one_that_was_asked_for_gives_no_verdict() -> None:
    seen = [one for one in seen_of(4_000, worse_by=4) if int(one.unit[1:]) % 8 != 1]
    report = build_report(question(), seen)
    assert report.split.is_mismatch
    assert report.headlines[0].decision == "unknown"
    assert "no verdict" in report.headlines[0].words
    (counts,) = report.revisions
    assert [(arm.arm, arm.units, arm.expected_units) for arm in counts.arms] == [
        ("control", 2_000, 1_750),
        ("challenger", 1_500, 1_750),
    ]
    assert "cannot be relied on" not in render_report(report, {})
    assert "nothing below can be relied on" in render_report(report, {})


def test_exposures_that_are_lost_of_units_that_are_not_are_noticed() -> None:
    """Nine tenths of what the challenger's units ask for arrive: no unit is missing."""
    seen = [
        expose(arm=("control", "challenger")[unit % 2], unit=f"u{unit}")
        for unit in range(1_000)
        for at in range(5)
        if not (unit % 2 and (unit + at) % 10 == 1)
    ]
    report = build_report(question(), seen)
    assert not report.split.is_mismatch
    assert "some are lost" in report.notes[0]
    assert build_report(question(), [*seen_of(400, worse_by=0)] * 3).notes == ()


def test_weights_that_changed_are_said_and_one_revision_may_be_asked_for() -> None:
    periods = {
        1: Period(allocation=allocate({"control": 9_000, "challenger": 1_000}), at=START),
        2: Period(allocation=HALF, at=START + timedelta(minutes=50)),
    }
    early = [expose(unit=f"e{at}", metrics={"colour": 1.0}) for at in range(50)]
    late = [
        expose(
            arm=("control", "challenger")[at % 2],
            unit=f"l{at}",
            revision=2,
            metrics={"colour": 3.0},
        )
        for at in range(100)
    ]
    report = build_report(question(periods=periods), [*early, *late])
    assert "weights changed" in report.notes[0]
    assert "--revision 2" in report.notes[0]
    assert result_of(report, "colour").decision == "worse"  # which time is to blame for
    of_one = build_report(question(periods=periods, revision=2), [*early, *late])
    assert of_one.notes == ()
    assert (of_one.exposures, result_of(of_one, "colour").effect) == (100, 0)


def test_pairs_are_the_callers_own_and_the_most_different_first() -> None:
    report = build_report(question(), [*pairs_of(40), *pairs_of(40, "other")])
    colour = next(one for one in report.shadows if one.metric == "colour")
    assert colour.control.exposures == 80
    own = [one.exposure for one in report.pairs]
    assert len(own) == MAX_PAIRS
    assert all(one.pictures is not None for one in report.pairs)
    assert [one.margins for one in report.pairs] == sorted(
        (one.margins for one in report.pairs), reverse=True
    )
    assert report.pairs[0].pictures is not None
    assert report.pairs[0].pictures.challenger == "ast_shadow39"
    assert report.headlines[0].decision == "worse"  # before anybody got the challenger
    others = build_report(question(caller_tenant="third"), pairs_of(40))
    assert (others.pairs, len(own)) == ((), MAX_PAIRS)


def test_pairs_that_are_equal_are_none_and_the_same_again_is_one() -> None:
    again = build_report(question(), [*pairs_of(2), *pairs_of(2)])
    assert [one.challenger_value for one in again.pairs] == [3.1]
    equal = build_report(question(), pairs_of(1))
    assert (equal.pairs, len(equal.shadows) > 0) == ((), True)
    assert "No pair of your own" in render_report(equal, {})


def test_page_begins_with_what_to_make_of_it_and_then_shows_pictures() -> None:
    """Four who were asked themselves say nothing yet: shadows do."""
    report = build_report(question(), [*seen_of(4, worse_by=4), *pairs_of(40)])
    assert report.headlines[0].decision == "worse"
    page = render_report(report, {})
    assert page.index("eye@2 is worse than eye@1") < page.index("Most different pairs")
    assert page.index("Most different pairs") < page.index("<h2>Metrics")
    assert "Keep eye@1; sm4ll experiments end tint" in page
    seen = [*seen_of(400, worse_by=0), *pairs_of(40)]
    seen += [failed(arm="challenger", unit=f"f{at}") for at in range(80)]
    mixed = render_report(build_report(question(), seen), {})
    assert "On the same requests (shadows): worse by" in mixed
    assert "Worse in other things: Errors." in mixed
    good = [*seen_of(4_000, worse_by=0)]
    assert "sm4ll rollouts start eye@2" in render_report(build_report(question(), good), {})
    good += [failed(arm="challenger", unit=f"u{at}") for at in range(1, 800, 2)]
    spoilt = render_report(build_report(question(), good), {})
    assert "before eye@2 goes to anybody else" in spoilt
    assert "rollouts start" not in spoilt
    ended = render_report(build_report(question(state="ended"), seen), {})
    assert "Next:" not in ended


def test_nothing_seen_is_a_report_and_a_page() -> None:
    report = build_report(question(), [])
    assert report.headlines[0].decision == "no_data"
    assert report.split.words == "nobody was seen yet"
    assert "Nothing has been measured yet" in render_report(report, {})


class Tags(HTMLParser):
    """What a page asks for from elsewhere, and whether its tags close."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href") and not (value or "").startswith("data:"):
                self.outside.append(str(value))
        assert tag != "script"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_nothing_in_it_comes_from_elsewhere(tmp_path: Path) -> None:
    seen = [*seen_of(200, worse_by=2), *pairs_of(30), *(failed(unit=f"f{at}") for at in range(9))]
    report = build_report(question(), seen)
    thumbnails = {name: "data:image/webp;base64,AAAA" for name in report.picture_ids()[:3]}
    page = write_report(report, tmp_path, thumbnails).read_text()
    tags = Tags()
    tags.feed(page)
    assert (tags.open, tags.outside) == ([], [])
    assert page.count("data:image/webp") == 3
    assert "not kept any longer" in page
    assert "Tint &amp; &lt;shade&gt;" in page
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.S).split()
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"report.html", *(f"{plot.name}.svg" for plot in draw_plots(report))}
    assert {"effects-challenger.svg", "time-challenger.svg", "split.svg"} <= files


def test_table_names_the_decision_and_stars_what_decides() -> None:
    report = build_report(question(), seen_of(400, worse_by=4))
    console = Console(width=140, record=True, file=open("/dev/null", "w"))
    console.print(draw_results(report, report.metrics))
    shown = console.export_text()
    assert "Colour of the product *, ΔE00" in shown
    narrow = Console(width=80, record=True, file=open("/dev/null", "w"))
    narrow.print(draw_results(report, report.metrics, 80))
    assert "…" not in (shown := narrow.export_text())
    assert "worse" in next(line for line in shown.splitlines() if "Colour" in line)
    assert "worse" in shown


@pytest.fixture(scope="module")
def api() -> FastAPI:
    return build_local_api(FAMILY)


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as client:
        yield client


@pytest.fixture(scope="module")
def tokens(api: FastAPI, http: TestClient) -> dict[str, str]:
    """Of a reviewer of two tenants; their exposures and the local tenant's are there."""
    tokens = {name: add_key_to(api, name, ["review"]) for name in ("acme", "other")}
    arms = [
        {"name": "control", "version": "top@noop", "weight": 5_000},
        {"name": "challenger", "version": "top@passthrough", "weight": 5_000},
    ]
    design = {"id": "top-2", "expert": "top", "arms": arms}
    closed = {**design, "id": "closed", "audience": {"denied_tenants": ["acme"]}}
    for body in (design, closed):
        assert http.post("/v1/experiments", json=body).status_code == 201
    services: Services = api.state.services

    async def fill() -> None:
        picture = encoded(photo(64, 64))
        kept = [
            await services.assets.store(
                tenant,
                TenantPolicy(),
                AssetKind.RESULT,
                picture,
                "image/png",
                "",
            )
            for tenant in (LOCAL_TENANT, "acme")
        ]
        now = utc_now()
        rows = [
            NewExposure(
                tenant_id=tenant, id=f"tr_{at}", is_shadow=is_shadow, experiment_id="top-2",
                revision=1, arm="challenger" if is_shadow else "control", version="top@noop",
                unit=f"{tenant}{at}", request_id=f"r{at}", latency_ms=10.0,
                metrics={"colour": 3.0 + is_shadow * (at + 1)}, at=now,
                pictures={"live": asset.id, "shadow": asset.id} if is_shadow else None,
            )
            for tenant, asset in ((LOCAL_TENANT, kept[0]), ("acme", kept[1]))
            for at in range(3)
            for is_shadow in (False, True)
        ]  # fmt: skip
        async with services.database.transaction() as session:
            await insert_exposures(session, rows, now + timedelta(days=1))

    assert http.portal is not None
    http.portal.call(fill)
    return tokens


def read(http: TestClient, token: str | None = None) -> Report:
    answer = http.get("/v1/experiments/top-2/report", headers=bearer(token) if token else {})
    assert answer.status_code == 200, answer.text
    return Report.model_validate_json(answer.content)


def test_administrators_see_all_tenants_and_reviewers_their_own(
    http: TestClient, tokens: dict[str, str]
) -> None:
    everybody = read(http)
    assert (everybody.tenant, everybody.exposures) == (None, 6)
    mine = read(http, tokens["acme"])
    assert (mine.tenant, mine.exposures) == ("acme", 3)
    assert read(http, tokens["other"]).exposures == 0
    named = {*everybody.picture_ids(), *mine.picture_ids()}
    assert len(named) == 2
    assert set(everybody.picture_ids()).isdisjoint(mine.picture_ids())


def test_page_shows_the_callers_pictures(http: TestClient, tokens: dict[str, str]) -> None:
    headers = {"accept": "text/html", **bearer(tokens["acme"])}
    answer = http.get("/v1/experiments/top-2/report", headers=headers)
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.text.count("data:image/webp") == 6


def test_what_is_not_for_a_tenant_does_not_exist(
    api: FastAPI, http: TestClient, tokens: dict[str, str]
) -> None:
    for name in ("closed", "nowhere"):
        answer = http.get(f"/v1/experiments/{name}/report", headers=bearer(tokens["acme"]))
        assert answer.status_code == 404
        assert answer.json()["detail"] == f"there is no experiment '{name}'"
    assert http.get("/v1/experiments/closed/report").status_code == 200
    token = add_key_to(api, "acme", ["tryon", "jobs"])
    assert http.get("/v1/experiments/top-2/report", headers=bearer(token)).status_code == 403


def test_reports_that_are_asked_for_at_once_are_all_answered(
    http: TestClient, tokens: dict[str, str]
) -> None:
    transport = httpx2.ASGITransport(app=http.app)
    headers = {**bearer(tokens["acme"])}

    async def ask() -> list[int]:
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            sent = [client.get("/v1/experiments/top-2/report", headers=headers) for _ in range(4)]
            return [answer.status_code for answer in await asyncio.gather(*sent)]

    assert http.portal is not None
    assert http.portal.call(ask) == [200] * 4


def test_command_prints_the_decision_and_writes_the_page(
    http: TestClient, tokens: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(url: str | None) -> Client:
        return Client("http://testserver", LOCAL_TOKEN, Through(http))

    monkeypatch.setattr(command, "connect", connect)
    words = ["experiments", "report", "top-2", "--output", str(tmp_path)]
    said = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert "top@passthrough or top@noop: no difference shown yet" in said
    assert "top@passthrough against top@noop, colour of the product: too few units" in said
    assert "The split is the one that was asked for" in said
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/webp") == 6
    assert (tmp_path / "split.svg").read_text().startswith("<svg")
