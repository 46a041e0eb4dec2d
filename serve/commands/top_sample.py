"""One moment of a running cluster, in the numbers that `sm4ll top` shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from serve.interval import Group, Interval
from serve.telemetry import STAGES

OK = "ok"


@dataclass(frozen=True, slots=True)
class Spread:
    """Seconds; of the interval, or since the start where there was nothing in it."""

    p50_s: float | None
    p95_s: float | None
    is_recent: bool


@dataclass(frozen=True, slots=True)
class VersionRow:
    """One version of an expert."""

    version: str
    share: float | None
    """Of its expert's try-ons."""
    replicas: int
    busy: float | None
    """Part of the interval in which its devices computed, 0 to 1."""
    queued: int
    queued_gpu_s: float
    tryons_per_s: float
    failures_per_s: float
    duration: Spread
    gpu_s_per_s: float
    batch_size: float | None
    wait_p95_s: float | None
    images: int
    usd_per_h: float
    violations: int


@dataclass(frozen=True, slots=True)
class ArmRow:
    """One arm of an experiment that got requests."""

    experiment: str
    arm: str
    share: float | None
    """As its failures: of the interval, or since the start where nothing was in it."""
    requests_per_s: float
    failure_share: float | None
    exposures: int
    """Since the start."""
    duration: Spread


@dataclass(frozen=True, slots=True)
class TenantRow:
    tenant: str
    requests_per_s: float
    failures_per_s: float
    gpu_s_per_s: float
    usd: float
    p95_s: float | None


@dataclass(frozen=True, slots=True)
class CacheRow:
    cache: str
    hit_share: float | None
    size_bytes: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Everything on one picture; rates are per second of the interval."""

    at_s: float
    interval_s: float
    up_s: float | None
    requests: int
    images: int
    usd: float
    requests_per_s: float
    refused_per_s: float
    failed_per_s: float
    in_progress: int
    duration: Spread
    gpu_s_per_s: float
    usd_per_h: float
    queued: int
    queued_gpu_s: float
    wait_p95_s: float | None
    jobs_waiting: int
    jobs_running: int
    oldest_job_s: float | None
    loop_lag_p99_s: float | None
    violations: int
    store_errors: int
    refusals: Mapping[str, float] = field(default_factory=dict)
    """Per second, by the problem's code; those there were, most frequent first."""
    stages_s: Mapping[str, float] = field(default_factory=dict)
    """Mean of each, in the order of a request."""
    versions: Sequence[VersionRow] = ()
    arms: Sequence[ArmRow] = ()
    tenants: Sequence[TenantRow] = ()
    caches: Sequence[CacheRow] = ()
    rollouts: Mapping[str, float] = field(default_factory=dict)
    """The challenger's share by rollout."""
    gpus: Mapping[str, float] = field(default_factory=dict)
    """Memory in use by GPU, 0 to 1."""


def take_sample(interval: Interval, at_s: float, up_s: float | None) -> Sample:
    by_status = interval.rate("sm4ll_http_requests_total", "status")
    jobs = interval.largest("sm4ll_jobs", "state", "class")
    oldest = interval.largest("sm4ll_job_oldest_seconds")
    return Sample(
        at_s=at_s,
        interval_s=interval.seconds,
        up_s=up_s,
        requests=int(_one(interval.total("sm4ll_http_requests_total"))),
        images=int(_one(interval.total("sm4ll_images_total"))),
        usd=_one(interval.total("sm4ll_cost_usd_total")),
        requests_per_s=sum(by_status.values()),
        refused_per_s=sum(rate for (status,), rate in by_status.items() if status[:1] == "4"),
        failed_per_s=sum(rate for (status,), rate in by_status.items() if status[:1] == "5"),
        in_progress=int(_one(interval.total("sm4ll_http_requests_in_progress"))),
        duration=_spread(interval, "sm4ll_tryon_duration_seconds"),
        gpu_s_per_s=_one(interval.rate("sm4ll_gpu_seconds_total")),
        usd_per_h=3600 * _one(interval.rate("sm4ll_cost_usd_total")),
        queued=int(_one(interval.total("sm4ll_queue_depth"))),
        queued_gpu_s=_one(interval.total("sm4ll_queue_gpu_seconds")),
        wait_p95_s=interval.quantile(0.95, "sm4ll_queue_wait_seconds").get(()),
        jobs_waiting=int(sum(n for (state, _), n in jobs.items() if state == "queued")),
        jobs_running=int(sum(n for (state, _), n in jobs.items() if state == "running")),
        oldest_job_s=oldest.get(()),
        loop_lag_p99_s=interval.quantile(0.99, "sm4ll_event_loop_lag_seconds").get(()),
        violations=int(_one(interval.total("sm4ll_outside_violations_total"))),
        store_errors=int(_one(interval.total("sm4ll_store_errors_total"))),
        refusals=_refusals(interval),
        stages_s=_stages(interval),
        versions=_versions(interval),
        arms=_arms(interval),
        tenants=_tenants(interval),
        caches=_caches(interval),
        rollouts=_by_first(interval.largest("sm4ll_rollout_share_ratio", "rollout")),
        gpus=_gpus(interval),
    )


def _one(values: Mapping[Group, float]) -> float:
    return values.get((), 0.0)


def _by_first(values: Mapping[Group, float]) -> dict[str, float]:
    return {group[0]: value for group, value in sorted(values.items())}


def _spread(interval: Interval, name: str, **where: str) -> Spread:
    is_recent = bool(interval.quantile(0.5, name, **where))
    find = interval.quantile if is_recent else interval.quantile_ever
    return Spread(find(0.5, name, **where).get(()), find(0.95, name, **where).get(()), is_recent)


def _refusals(interval: Interval) -> dict[str, float]:
    rates = interval.rate("sm4ll_refusals_total", "code")
    there = [(code, rate) for (code,), rate in rates.items() if rate > 0]
    return dict(sorted(there, key=lambda one: -one[1]))


def _stages(interval: Interval) -> dict[str, float]:
    means = interval.mean("sm4ll_stage_duration_seconds", "stage")
    return {stage: means[stage,] for stage in STAGES if (stage,) in means}


def _versions(interval: Interval) -> tuple[VersionRow, ...]:
    tryons = "sm4ll_tryons_total"
    shares = _shares(
        interval.rate(tryons, "expert", "version"), interval.total(tryons, "expert", "version")
    )
    names = ("sm4ll_replicas", "sm4ll_queue_depth", "sm4ll_replica_busy_seconds_total", tryons)
    found = {version for name in names for (version,) in interval.groups(name, "version")}
    by_version = {version: share for (_, version), share in shares.items()}
    return tuple(_version(interval, one, by_version.get(one)) for one in sorted(found - {""}))


def _version(interval: Interval, version: str, share: float | None) -> VersionRow:
    only = {"version": version}
    replicas = int(_one(interval.largest("sm4ll_replicas", **only)))
    busy = _one(interval.rate("sm4ll_replica_busy_seconds_total", **only))
    ended = interval.rate("sm4ll_tryons_total", "code", **only)
    return VersionRow(
        version=version,
        share=share,
        replicas=replicas,
        busy=busy / replicas if replicas else None,
        queued=int(_one(interval.total("sm4ll_queue_depth", **only))),
        queued_gpu_s=_one(interval.total("sm4ll_queue_gpu_seconds", **only)),
        tryons_per_s=ended.get((OK,), 0.0),
        failures_per_s=sum(rate for (code,), rate in ended.items() if code != OK),
        duration=_spread(interval, "sm4ll_tryon_duration_seconds", **only),
        gpu_s_per_s=_one(interval.rate("sm4ll_gpu_seconds_total", **only)),
        batch_size=interval.mean("sm4ll_batch_size", **only).get(()),
        wait_p95_s=interval.quantile(0.95, "sm4ll_queue_wait_seconds", **only).get(()),
        images=int(_one(interval.total("sm4ll_images_total", **only))),
        usd_per_h=3600 * _one(interval.rate("sm4ll_cost_usd_total", **only)),
        violations=int(_one(interval.total("sm4ll_outside_violations_total", **only))),
    )


def _shares(rates: Mapping[Group, float], totals: Mapping[Group, float]) -> dict[Group, float]:
    """Among all with the same first label: of the interval, or since the start."""
    shares: dict[Group, float] = {}
    for whole, part in totals:
        source = rates if sum(r for g, r in rates.items() if g[0] == whole) > 0 else totals
        among = sum(value for group, value in source.items() if group[0] == whole)
        if among > 0:
            shares[whole, part] = source[whole, part] / among
    return shares


def _arms(interval: Interval) -> tuple[ArmRow, ...]:
    by = ("sm4ll_exposures_total", "experiment", "arm")
    shares = _shares(interval.rate(*by), interval.total(*by))
    rows = [
        _arm(interval, experiment, arm, shares.get((experiment, arm)))
        for experiment, arm in sorted(interval.groups(*by))
    ]
    # Experiments that have ended keep their counters: those with traffic come first.
    busy = {row.experiment for row in rows if row.requests_per_s > 0}
    return tuple(
        sorted(
            rows,
            key=lambda row: (
                row.experiment not in busy,
                row.experiment,
                -(row.share or 0),
                row.arm,
            ),
        )
    )


def _arm(interval: Interval, experiment: str, arm: str, share: float | None) -> ArmRow:
    name, only = "sm4ll_exposures_total", {"experiment": experiment, "arm": arm}
    own = interval.rate(name, "outcome", **only)
    per_s = sum(own.values())
    own = own if per_s else interval.total(name, "outcome", **only)
    among = sum(own.values())
    return ArmRow(
        experiment=experiment,
        arm=arm,
        share=share,
        requests_per_s=per_s,
        failure_share=1 - own.get((OK,), 0.0) / among if among else None,
        exposures=int(_one(interval.total(name, **only))),
        duration=_spread(interval, "sm4ll_exposure_duration_seconds", **only),
    )


def _tenants(interval: Interval) -> tuple[TenantRow, ...]:
    names = ("sm4ll_tenant_requests_total", "sm4ll_tenant_gpu_seconds_total")
    found = {tenant for name in names for (tenant,) in interval.groups(name, "tenant")}
    return tuple(
        sorted(
            (_tenant(interval, tenant) for tenant in found),
            key=lambda row: (-row.gpu_s_per_s, -row.requests_per_s, -row.usd, row.tenant),
        )
    )


def _tenant(interval: Interval, tenant: str) -> TenantRow:
    codes = interval.rate("sm4ll_tenant_requests_total", "code", tenant=tenant)
    p95 = interval.quantile(0.95, "sm4ll_tenant_tryon_duration_seconds", tenant=tenant)
    return TenantRow(
        tenant=tenant,
        requests_per_s=sum(codes.values()),
        failures_per_s=sum(rate for (code,), rate in codes.items() if code != OK),
        gpu_s_per_s=_one(interval.rate("sm4ll_tenant_gpu_seconds_total", tenant=tenant)),
        usd=_one(interval.total("sm4ll_tenant_cost_usd_total", tenant=tenant)),
        p95_s=p95.get(()),
    )


def _caches(interval: Interval) -> tuple[CacheRow, ...]:
    name = "sm4ll_cache_requests_total"
    rows = []
    for (cache,) in sorted(interval.groups(name, "cache")):
        outcomes = interval.rate(name, "outcome", cache=cache)
        if not sum(outcomes.values()):
            outcomes = interval.total(name, "outcome", cache=cache)
        among = sum(outcomes.values())
        hits = outcomes.get(("hit",), 0.0)
        size_bytes = _one(interval.total("sm4ll_cache_bytes", cache=cache))
        rows.append(CacheRow(cache, hits / among if among else None, size_bytes))
    return tuple(rows)


def _gpus(interval: Interval) -> dict[str, float]:
    used = interval.largest("sm4ll_gpu_memory_used_bytes", "NodeAddress", "gpu")
    total = interval.largest("sm4ll_gpu_memory_total_bytes", "NodeAddress", "gpu")
    return {
        f"{node} {gpu}".strip(): used.get((node, gpu), 0.0) / size
        for (node, gpu), size in sorted(total.items())
        if size
    }
