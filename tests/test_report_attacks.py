"""What requests say in their own words is in reports: nobody breaks them by it, nor learns more."""

import time
from html.parser import HTMLParser

from starlette.testclient import TestClient

from serve.experiments.columns import MAX_TAGS, MAX_VALUES
from serve.experiments.report import build_report
from serve.policy import TenantPolicy
from serve.reporting.page import render_report
from serve.store.exposures import Seen
from tests.exposures import expose
from tests.fakes import build_local_api
from tests.tenants import add_key_to, bearer
from tests.test_report_api import DESIGN, FAMILY, pairs_of, question

NASTY = "\"'><script>alert(1)</script><img src=x onerror=alert(1)><a href=javascript:alert(1)>]]>"
CARRIERS = {"script", "iframe", "object", "embed", "a", "form", "link", "base", "foreignobject"}


class Carriers(HTMLParser):
    """What in a page would run or lead elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag] if tag in CARRIERS else []
        self.found += [name for name, _ in attrs if name.startswith("on")]
        self.found += [str(value) for name, value in attrs if name in ("src", "href", "xlink:href")]


def worded(number: int, **named: str) -> list[Seen]:
    """Every one of them in words of its own, where it is `{at}`."""
    return [
        expose(
            arm=("control", "challenger")[at % 2],
            unit=f"u{at}",
            metrics={"colour": 3.0 + at % 5},
            category=named.get("category", "").format(at=at),
            tags={f"{name}{at}": "x" for name in named.get("tags", "").split()},
        )
        for at in range(number)
    ]


def test_words_that_no_two_requests_share_make_no_report_slow() -> None:
    """They took 20 s of the router for 20,000 categories, or for 800 requests with own tags."""
    seen = worded(20_000, category="sku-{at}", tags="a b c d e f g h")
    started = time.process_time()
    report = build_report(question(), seen)
    assert time.process_time() - started < 10
    assert len({one.by for one in report.slices}) <= MAX_TAGS + 1
    assert len([one for one in report.slices if one.by == "category"]) <= MAX_VALUES * 14


def test_the_tags_that_most_requests_have_are_told_apart() -> None:
    seen = worded(400, tags="own")
    for at, one in enumerate(seen):
        one.tags.update(season=("ss27", "fw27")[at // 2 % 2])  # type: ignore[attr-defined]
    named = {one.by for one in build_report(question(), seen).slices}
    assert "tag season" in named
    assert len(named) <= MAX_TAGS


def test_no_word_of_anybody_is_markup_in_the_page() -> None:
    seen = [
        *worded(80, category=NASTY),
        *(
            expose(
                tenant_id=NASTY,
                id=NASTY,
                arm=("control", "challenger")[at % 2],
                unit=f"t{at}",
                metrics={"colour": 9.0 * (at % 2)},
                tags={"season": NASTY},
            )
            for at in range(80)
        ),
        *pairs_of(4, NASTY),
    ]
    design = DESIGN.model_copy(update={"title": NASTY})
    report = build_report(question(design=design, caller_tenant=NASTY), seen)
    assert {one.value for one in report.slices} >= {NASTY}
    page = render_report(report, {name: f"data:{NASTY}" for name in report.picture_ids()})
    found = Carriers()
    found.feed(page)
    assert [one for one in found.found if not one.startswith("data:")] == []
    assert "<script" not in page


def test_versions_that_are_not_for_a_tenant_have_no_report_for_it() -> None:
    api = build_local_api(FAMILY)
    with TestClient(api) as http:
        arms = [
            {"name": "control", "version": "top@noop", "weight": 5_000},
            {"name": "challenger", "version": "top@passthrough", "weight": 5_000},
        ]
        design = {"id": "secret", "title": "of another brand", "expert": "top", "arms": arms}
        assert http.post("/v1/experiments", json=design).status_code == 201
        policy = TenantPolicy(versions=("top@noop",))
        for tenant, limits, status in (("all", None, 200), ("some", policy, 404)):
            key = bearer(add_key_to(api, tenant, ["review"], limits))
            answer = http.get("/v1/experiments/secret/report", headers=key)
            assert answer.status_code == status, answer.text
