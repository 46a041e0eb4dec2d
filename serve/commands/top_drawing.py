"""`sm4ll top` as a terminal shows it: one picture that fits, the most important first.

Colours say what to look at: green is as it should be, yellow wants a look, red is wrong; what is
grey has had no request lately.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from serve.commands.top_sample import ArmRow, Sample, Spread, TenantRow, VersionRow
from serve.commands.top_words import (
    IS_HIGH,
    bad_if,
    draw_busy,
    draw_spark,
    grey_if,
    style_of_share,
    tell_count,
    tell_quantile,
    tell_rate,
    tell_share,
    tell_time,
    tell_where,
    warn_if,
)
from serve.messages import EXPERTS

WIDE, WIDER = 100, 124
BAR_WIDTH = 8
MIN_NAME = 18
# How late a loop may come to a timer before requests feel it; the gateway's own limit is 5 ms.
LAG_HIGH_S, LAG_BAD_S = 0.025, 0.1
MIN_VERSIONS = 3
HEAD_ROWS = 1
MAX_VITALS, MAX_STAGE_LINES = 4, 2
MIN_SPARK = 12
COLOURS = (
    *("bright_black", "blue", "cyan", "magenta", "dark_orange3", "green"),
    *("steel_blue1", "yellow", "deep_pink3", "spring_green3", "purple", "red", "grey58"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """What is drawn where."""

    where: str
    """Where the numbers come from."""
    width: int
    height: int
    rates: Sequence[float] = ()
    """Requests per second of the last samples, oldest first."""
    trouble: str = ""
    """Why there is no newer sample."""


def draw_top(sample: Sample, place: Place) -> RenderableType:
    """At most `place.height` lines of at most `place.width` cells."""
    parts: list[RenderableType] = [_draw_title(sample, place), *_draw_vitals(sample, place)]
    left = place.height - len(parts) - 1  # the last line stays free: some terminals scroll
    num_versions = max(min(len(sample.versions), left - HEAD_ROWS), MIN_VERSIONS)
    parts.append(_draw_versions(sample, num_versions, place.width))
    left -= max(min(num_versions, len(sample.versions)), 1) + HEAD_ROWS
    side_by_side = place.width >= WIDER
    below: list[RenderableType] = []
    heights = []
    arms, tenants = sample.arms, sample.tenants
    if arms and left >= HEAD_ROWS + 1:
        shared = left - HEAD_ROWS - (0 if side_by_side or not tenants else HEAD_ROWS + 1)
        num_arms = max(1, min(len(arms), shared))
        below.append(_draw_arms(arms[:num_arms], len(arms)))
        heights.append(num_arms + HEAD_ROWS)
    room = left if side_by_side else left - sum(heights)
    if tenants and room >= HEAD_ROWS + 1:
        num_tenants = min(len(tenants), room - HEAD_ROWS)
        below.append(_draw_tenants(tenants[:num_tenants], len(tenants)))
        heights.append(num_tenants + HEAD_ROWS)
    left -= max(heights, default=0) if side_by_side else sum(heights)
    stages = _draw_stages(sample, place.width) if sample.stages_s else []
    gap = left - len(stages) > len(below)  # air where there is room for it
    for part in [_beside(below)] if side_by_side and len(below) > 1 else below:
        parts += ["", part] if gap else [part]
    if len(stages) + gap <= left - gap * len(below):
        parts += ["", *stages] if gap else stages
    return Group(*parts)


def _beside(tables: Sequence[RenderableType]) -> Table:
    grid = Table.grid(padding=(0, 6, 0, 0))
    grid.add_row(*tables)
    return grid


def _draw_title(sample: Sample, place: Place) -> Text:
    at = datetime.fromtimestamp(sample.at_s).strftime("%H:%M:%S")
    if place.trouble:
        return _cut(Text(f" {at}  {place.trouble} ", "bold white on red"), place.width)
    wide = place.width >= WIDE
    ever = (tell_count(sample.requests), tell_count(sample.images), f"{sample.usd:,.2f} USD")
    totals = "  {} {}  {} {}  {}".format(
        ever[0], "requests" if wide else "req", ever[1], "pictures" if wide else "img", ever[2]
    )
    up = "" if sample.up_s is None else f"  up {tell_time(sample.up_s)}"
    room = place.width - len(f" sm4ll top  {up}{totals} {at}")
    where = tell_where(place.where)
    where = where if len(where) <= room else f"{where[: max(room - 1, 0)]}…"
    line = Text.assemble(
        (" sm4ll top ", "bold white on dark_blue"), " ", (where, "bold"), up, (totals, "cyan")
    )
    line.pad_right(max(1, place.width - line.cell_len - len(at)))
    return line.append(at, "bright_black")


def _draw_vitals(sample: Sample, place: Place) -> list[Text]:
    """What callers see, what the cluster has to do, and what it refuses."""
    lag = sample.loop_lag_p99_s
    waiting = sample.queued > 0
    items = [
        _item("requests", Text(f"{tell_rate(sample.requests_per_s)}/s", "bold")),
        _item("failed", bad_if(sample.failed_per_s > 0, f"{tell_rate(sample.failed_per_s)}/s")),
        _item("refused", warn_if(sample.refused_per_s > 0, f"{tell_rate(sample.refused_per_s)}/s")),
        _item("try-on", *_tell_spread(sample.duration)),
        _item("outside", _tell_violations(sample.violations)),
        _item("loop lag", Text(tell_time(lag), _style_of_lag(lag))),
        _item("GPU", Text(f"{sample.gpu_s_per_s:.2f} s/s", "bold")),
        _item("waiting", warn_if(waiting, f"{sample.queued} = {sample.queued_gpu_s:.1f} GPU-s")),
        _item("jobs", warn_if(sample.jobs_waiting > 0, _tell_jobs(sample))),
        _item("remembered", Text(_tell_caches(sample))),
    ]
    items += [
        _item("rollout", Text(f"{rollout} {tell_share(share)}", "cyan"))
        for rollout, share in sample.rollouts.items()
    ]
    items += [
        _item(f"GPU {gpu}", warn_if(used >= IS_HIGH, tell_share(used)))
        for gpu, used in sample.gpus.items()
    ]
    if sample.store_errors:
        items.append(_item("database did not answer", bad_if(True, f"{sample.store_errors}x")))
    lines = _flow(items, place.width, MAX_VITALS)
    spark_width = place.width - lines[-1].cell_len - 2
    if (
        place.width >= WIDE
        and spark_width >= MIN_SPARK
        and (spark := draw_spark(place.rates[-spark_width:]))
    ):
        lines[-1].append(f"  {spark}", "cyan")
    if sample.refusals:
        codes = [Text(f"{code} {tell_rate(rate)}/s") for code, rate in sample.refusals.items()]
        lines += _flow([Text("refused as", "bright_black"), *codes], place.width, 1, "yellow")
    return lines


def _flow(items: Sequence[Text], width: int, max_lines: int, style: str = "") -> list[Text]:
    """Side by side as far as they fit; what is over is left out."""
    lines = [Text(style=style)]
    for item in items:
        if lines[-1].cell_len and lines[-1].cell_len + 2 + item.cell_len > width:
            lines.append(Text(style=style))
        elif lines[-1].cell_len:
            lines[-1].append("  ")
        lines[-1].append_text(item)
    return [_cut(line, width) for line in lines[:max_lines]]


def _cut(line: Text, width: int) -> Text:
    line.truncate(width, overflow="ellipsis")
    return line


def _draw_versions(sample: Sample, num_rows: int, width: int) -> Table:
    columns = choose_columns(width)
    bar_width = BAR_WIDTH if width - _width_of(columns) - MIN_NAME > 2 * BAR_WIDTH else 0
    table = _table(width, "version", *(column.name for column in columns))
    rows = sorted(sample.versions, key=_order)
    if len(rows) > num_rows:  # those that have something to say
        rows = sorted(rows, key=_activity, reverse=True)[:num_rows]
        table.columns[0].header = f"version ({num_rows} of {len(sample.versions)})"
    for row in rows:
        name = Text(row.version, "bold")
        if row.violations:
            name.append(f" ✗{row.violations}", "bold red")
        cells = [
            draw_busy(row.busy, bar_width) if column.name == "busy" else column.tell(row)
            for column in columns
        ]
        table.add_row(name, *cells, style="" if row.replicas or row.queued else "dim")
    if not rows:
        table.add_row(Text("none yet", "bright_black"))
    return table


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a version."""

    name: str
    rank: int
    """Which go first where there is no room: those with the highest."""
    tell: Callable[[VersionRow], Text]
    width: int = 5

    @property
    def cells(self) -> int:
        return max(self.width, len(self.name)) + 1


COLUMNS = (
    Column("share", 7, lambda row: _tell_recent_share(row.share, row.duration.is_recent)),
    Column("repl", 5, lambda row: grey_if(not row.replicas, str(row.replicas)), 4),
    Column("busy", 6, lambda row: draw_busy(row.busy, 0)),
    Column("queue", 4, lambda row: warn_if(row.queued > 0, str(row.queued))),
    Column("GPU-s", 9, lambda row: warn_if(row.queued > 0, f"{row.queued_gpu_s:.1f}")),
    Column("ok/s", 2, lambda row: grey_if(not row.tryons_per_s, tell_rate(row.tryons_per_s))),
    Column("fail/s", 3, lambda row: bad_if(row.failures_per_s > 0, tell_rate(row.failures_per_s))),
    Column(
        "p50", 1, lambda row: grey_if(not row.duration.is_recent, tell_quantile(row.duration.p50_s))
    ),
    Column(
        "p95", 0, lambda row: grey_if(not row.duration.is_recent, tell_quantile(row.duration.p95_s))
    ),
    Column("GPU s/s", 8, lambda row: grey_if(not row.gpu_s_per_s, f"{row.gpu_s_per_s:.2f}")),
    Column("batch", 10, lambda row: Text(f"{row.batch_size:.1f}" if row.batch_size else "–")),
    Column("wait p95", 11, lambda row: Text(tell_quantile(row.wait_p95_s))),
    Column("pictures", 12, lambda row: Text(tell_count(row.images))),
    Column("USD/h", 13, lambda row: Text(f"{row.usd_per_h:.2f}"), 6),
)


def choose_columns(width: int) -> tuple[Column, ...]:
    """As many as leave room for the version's name."""
    chosen: list[Column] = []
    for column in sorted(COLUMNS, key=lambda one: one.rank):
        if _width_of((*chosen, column)) + MIN_NAME > width:
            break
        chosen.append(column)
    return tuple(column for column in COLUMNS if column in chosen)


def _width_of(columns: Sequence[Column]) -> int:
    return sum(column.cells for column in columns)


def _draw_arms(rows: Sequence[ArmRow], num_all: int) -> Table:
    table = _table(None, "experiment", "arm", "share", "req/s", "failed", "p50", "p95", "exposures")
    if len(rows) < num_all:
        table.columns[1].header = f"arm ({len(rows)} of {num_all})"
    before = ""
    for row in rows:
        is_old = not row.duration.is_recent
        failed = row.failure_share or 0.0
        table.add_row(
            Text("" if row.experiment == before else row.experiment, "bold magenta"),
            Text(row.arm),
            _tell_recent_share(row.share, row.requests_per_s > 0),
            grey_if(not row.requests_per_s, tell_rate(row.requests_per_s)),
            grey_if(not row.requests_per_s, tell_share(row.failure_share))
            if not failed
            else bad_if(True, tell_share(row.failure_share)),
            grey_if(is_old, tell_quantile(row.duration.p50_s)),
            grey_if(is_old, tell_quantile(row.duration.p95_s)),
            Text(tell_count(row.exposures)),
        )
        before = row.experiment
    return table


def _draw_tenants(rows: Sequence[TenantRow], num_all: int) -> Table:
    table = _table(None, "tenant", "req/s", "not ok/s", "GPU s/s", "p95", "USD")
    if len(rows) < num_all:
        table.columns[0].header = f"tenant ({len(rows)} of {num_all})"
    for row in rows:
        table.add_row(
            Text(row.tenant, "bold" if row.requests_per_s else ""),
            grey_if(not row.requests_per_s, tell_rate(row.requests_per_s)),
            warn_if(row.failures_per_s > 0, tell_rate(row.failures_per_s)),
            grey_if(not row.gpu_s_per_s, f"{row.gpu_s_per_s:.2f}"),
            Text(tell_quantile(row.p95_s)),
            Text(f"{row.usd:,.2f}"),
        )
    return table


def _draw_stages(sample: Sample, width: int) -> list[Text]:
    """Where the milliseconds go: the mean of each stage, as a bar and in words."""
    whole_s = sum(sample.stages_s.values()) or 1.0
    bar, items = Text(), []
    for place, (stage, mean_s) in enumerate(sample.stages_s.items()):
        colour = COLOURS[place % len(COLOURS)]
        until = sum(list(sample.stages_s.values())[: place + 1]) / whole_s
        bar.append("▇" * (round(until * width) - bar.cell_len), colour)
        items.append(Text.assemble((f"{stage} ", colour), tell_time(mean_s)))
    return [bar, *_flow(items, width, MAX_STAGE_LINES)]


def _table(width: int | None, *columns: str) -> Table:
    table = Table(
        box=None,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        header_style="grey70 on grey19",
        width=width,
    )
    for place, name in enumerate(columns):
        # Names are what gives way where the terminal is narrow, never a number.
        is_name = place == 0 or name == "arm"
        table.add_column(
            name,
            justify="left" if is_name else "right",
            no_wrap=True,
            overflow="ellipsis",
            ratio=1 if place == 0 and width is not None else None,
        )
    return table


def _order(row: VersionRow) -> tuple[int, str]:
    expert = row.version.partition("@")[0]
    known: tuple[str, ...] = EXPERTS
    return known.index(expert) if expert in known else len(known), row.version


def _activity(row: VersionRow) -> tuple[bool, int, float, float]:
    return row.violations > 0, row.queued, row.failures_per_s, row.tryons_per_s


def _item(label: str, *told: Text) -> Text:
    return Text.assemble((f"{label} ", "bright_black"), *told)


def _tell_violations(violations: int) -> Text:
    if violations:
        return Text(f" {violations} ✗ ", "bold white on red")
    return Text("0 ✓", "green")


def _tell_spread(spread: Spread) -> tuple[Text, Text]:
    style = "bold" if spread.is_recent else "bright_black"
    return Text(f"p50 {tell_quantile(spread.p50_s)} ", style), Text(
        f"p95 {tell_quantile(spread.p95_s)}", style
    )


def _tell_recent_share(share: float | None, is_recent: bool) -> Text:
    return Text(tell_share(share), style_of_share(share) if is_recent else "bright_black")


def _tell_jobs(sample: Sample) -> str:
    oldest = f", oldest {tell_time(sample.oldest_job_s)}" if sample.jobs_waiting else ""
    return f"{sample.jobs_waiting} wait, {sample.jobs_running} run{oldest}"


def _tell_caches(sample: Sample) -> str:
    return "  ".join(f"{one.cache} {tell_share(one.hit_share)}" for one in sample.caches) or "–"


def _style_of_lag(lag_s: float | None) -> str:
    if lag_s is None:
        return "bright_black"
    return "bold red" if lag_s > LAG_BAD_S else "yellow" if lag_s > LAG_HIGH_S else "green"
