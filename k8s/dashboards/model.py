"""What a dashboard is made of, and the JSON that Grafana imports.

Ours instead of grafana-foundation-sdk: that is one release per Grafana version, and these need six
kinds of objects of it.

Source: Grafana's dashboard JSON model, schema 39 (Grafana 11),
https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from k8s.queries import PanelUnit, Query
from serve.telemetry import METRIC_PREFIX

SCHEMA_VERSION = 39
GRID = 24
"""Columns of Grafana's grid."""
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
GRAFANA_UNITS: Mapping[PanelUnit, str] = {
    "1": "short",
    "seconds": "s",
    "bytes": "bytes",
    "usd": "currencyUSD",
    "ratio": "percentunit",
    "1/s": "cps",
    "bytes/s": "Bps",
    "usd/h": "currencyUSD",
}
Kind = Literal["lines", "stacked", "number", "bars"]
"""Lines over time, areas on each other, the last value large, the last values as bars."""
GRAFANA_TYPES: Mapping[Kind, str] = {
    "lines": "timeseries",
    "stacked": "timeseries",
    "number": "stat",
    "bars": "bargauge",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """Good below the first, bad from the second on; both where less is better."""

    warn: float
    bad: float
    """Equal to `warn` where nothing lies between."""

    def steps(self) -> list[dict[str, Any]]:
        steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
        if self.warn < self.bad:
            steps.append({"color": "orange", "value": self.warn})
        return [*steps, {"color": "red", "value": self.bad}]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. Its unit is its queries'; they must have the same."""

    title: str
    queries: Sequence[Query]
    description: str
    kind: Kind = "lines"
    width: int = 8
    limits: Limits | None = None

    def __post_init__(self) -> None:
        if len({query.unit for query in self.queries}) != 1:
            raise ValueError(f"{self.title}: its queries have several units, or there are none")

    @property
    def unit(self) -> PanelUnit:
        return self.queries[0].unit

    @property
    def height(self) -> int:
        return 4 if self.kind == "number" else 8

    def document(self, panel_id: int, x: int, y: int) -> dict[str, Any]:
        return {
            "id": panel_id,
            "type": GRAFANA_TYPES[self.kind],
            "title": self.title,
            "description": self.description,
            "datasource": SOURCE,
            "gridPos": {"h": self.height, "w": self.width, "x": x, "y": y},
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": self._options(),
            "targets": [
                {
                    "refId": chr(ord("A") + at),
                    "datasource": SOURCE,
                    "expr": query.expr,
                    "legendFormat": query.legend or "__auto",
                    "instant": self.kind == "bars",
                    "range": self.kind != "bars",
                }
                for at, query in enumerate(self.queries)
            ],
        }

    def _defaults(self) -> dict[str, Any]:
        defaults: dict[str, Any] = {"unit": GRAFANA_UNITS[self.unit], "min": 0}
        if self.kind in ("lines", "stacked"):
            is_stacked = self.kind == "stacked"
            defaults["custom"] = {
                "drawStyle": "line",
                "lineWidth": 1 if is_stacked else 2,
                "fillOpacity": 40 if is_stacked else 0,
                "showPoints": "never",
                "stacking": {"mode": "normal" if is_stacked else "none", "group": "A"},
            }
        if self.limits is not None:
            defaults["thresholds"] = {"mode": "absolute", "steps": self.limits.steps()}
            defaults["color"] = {"mode": "thresholds"}
            if self.kind == "lines":
                defaults["color"] = {"mode": "palette-classic"}
                defaults["custom"]["thresholdsStyle"] = {"mode": "dashed"}
        return defaults

    def _options(self) -> dict[str, Any]:
        last = {"calcs": ["lastNotNull"], "fields": "", "values": False}
        if self.kind == "number":
            mode = "background" if self.limits else "none"
            return {"reduceOptions": last, "colorMode": mode, "graphMode": "area"}
        if self.kind == "bars":
            return {"reduceOptions": last, "orientation": "horizontal", "displayMode": "basic"}
        return {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }


@dataclass(frozen=True, slots=True)
class Row:
    """Panels beside each other, under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Variable:
    """What whoever looks chooses from: the values of a label."""

    name: str
    metric: str
    """Of the table; its part of a histogram included."""
    where: str = ""

    def document(self) -> dict[str, Any]:
        braces = f"{{{self.where}}}" if self.where else ""
        query = f"label_values({METRIC_PREFIX}{self.metric}{braces}, {self.name})"
        return {
            "name": self.name,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": query, "refId": self.name},
            "refresh": 2,  # whenever the time range changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        }


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page of Grafana."""

    name: str
    """Of its file and of its address."""
    title: str
    description: str
    rows: Sequence[Row]
    variables: Sequence[Variable] = field(default_factory=tuple)

    @property
    def panels(self) -> Iterator[Panel]:
        for row in self.rows:
            yield from row.panels

    def document(self) -> dict[str, Any]:
        return {
            "uid": f"sm4ll-{self.name}",
            "title": f"sm4ll {self.title}",
            "description": self.description,
            "tags": ["sm4ll"],
            "schemaVersion": SCHEMA_VERSION,
            "editable": True,
            "graphTooltip": 1,  # the same moment in all panels
            "refresh": "10s",
            "time": {"from": "now-1h", "to": "now"},
            "timezone": "",
            "links": [_links()],
            "templating": {
                "list": [_datasource(), *(variable.document() for variable in self.variables)]
            },
            "panels": list(self._placed()),
        }

    def _placed(self) -> Iterator[dict[str, Any]]:
        panel_id, y = 0, 0
        for row in self.rows:
            panel_id += 1
            place = {"h": 1, "w": GRID, "x": 0, "y": y}
            yield {
                "id": panel_id, "type": "row", "title": row.title, "gridPos": place,
                "collapsed": False, "panels": [],
            }  # fmt: skip
            x, y, height = 0, y + 1, 0
            for panel in row.panels:
                if x + panel.width > GRID:
                    x, y, height = 0, y + height, 0
                panel_id += 1
                yield panel.document(panel_id, x, y)
                x, height = x + panel.width, max(height, panel.height)
            y += height


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "refresh": 1}


def _links() -> dict[str, Any]:
    return {
        "type": "dashboards",
        "title": "sm4ll",
        "tags": ["sm4ll"],
        "asDropdown": True,
        "includeVars": True,
        "keepTime": True,
    }
