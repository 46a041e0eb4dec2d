"""What the dashboards ask for exists, and is asked for in its own unit."""

import json

import pytest

from k8s.dashboards.model import GRID, Dashboard, Panel
from k8s.observed import build_dashboards
from k8s.queries import Query, level, quantile, rate
from serve.telemetry import METRIC_PREFIX, METRICS
from tests.promql import PARTS, find_metrics, find_unknown

DASHBOARDS = build_dashboards()
EVERY_PANEL = [
    pytest.param(panel, id=f"{dashboard.name}-{panel.title}")
    for dashboard in DASHBOARDS
    for panel in dashboard.panels
]


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_panel_asks_only_for_what_is_recorded(panel: Panel) -> None:
    assert all(not find_unknown(query.expr) for query in panel.queries)
    assert all(list(find_metrics(query.expr)) for query in panel.queries)
    assert panel.description.endswith(".")


def test_reader_of_queries_finds_what_does_not_exist() -> None:
    assert find_unknown("rate(ray_sm4ll_nothing_total[5m])") == {"ray_sm4ll_nothing_total"}
    assert find_unknown('sum by (tenant) (ray_sm4ll_permits{class="a"})') == {
        "ray_sm4ll_permits{class}",
        "tenant",
    }


def test_unknown_names_and_labels_are_refused_where_they_are_written() -> None:
    with pytest.raises(KeyError):
        rate("sm4ll_nothing_total")
    with pytest.raises(ValueError, match="no label tenant"):
        level("sm4ll_permits", ("tenant",))
    with pytest.raises(ValueError, match="is a gauge"):
        rate("sm4ll_permits")


def test_panel_has_one_unit_which_is_its_metrics() -> None:
    assert quantile(0.5, "sm4ll_http_request_body_bytes").unit == "bytes"
    assert rate("sm4ll_gpu_seconds_total").unit == "1"  # busy devices
    with pytest.raises(ValueError, match="several units"):
        Panel("both", [Query("a", "bytes"), Query("b", "seconds")], "Cannot be.")


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_dashboard_is_whole(dashboard: Dashboard) -> None:
    document = json.loads(json.dumps(dashboard.document()))
    places = [panel["gridPos"] for panel in document["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells), "panels lie on each other"
    assert max(x for x, _ in cells) < GRID
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
    chosen = {variable["name"] for variable in document["templating"]["list"]}
    asked = json.dumps([panel.get("targets") for panel in document["panels"]])
    for variable in chosen - {"datasource"}:
        assert f"${variable}" in asked, f"{variable} is chosen and changes nothing"


def test_every_metric_is_on_a_picture_or_behind_an_alert() -> None:
    asked = {
        name
        for dashboard in DASHBOARDS
        for panel in dashboard.panels
        for query in panel.queries
        for name, _ in find_metrics(query.expr)
    }
    unseen = {
        name
        for name, metric in METRICS.items()
        if not {f"{METRIC_PREFIX}{name}{part}" for part in PARTS[metric.kind]} & asked
    }
    assert not unseen
