"""Ray's flags, each with its reason: what a local cluster sets, and what every Ray container of
another must be given. Ray reads them when it is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Where = Literal["anywhere", "laptop"]
Reader = Literal["controller", "proxy", "router", "expert", "segmenter", "runner", "node"]
REPLICAS: tuple[Reader, ...] = ("router", "expert", "segmenter", "runner")
EVERYONE: tuple[Reader, ...] = ("controller", "proxy", *REPLICAS, "node")

HARD_STOP_AFTER_S = 600


@dataclass(frozen=True, slots=True)
class RayFlag:
    """One environment variable."""

    name: str
    value: str
    readers: tuple[Reader, ...]
    """The kinds of processes in which it does something: deployments by their kind, Serve's own
    (`controller`, and `proxy` for HAProxy's guardian), and Ray's (`node`)."""
    reason: str
    where: Where = "anywhere"


RAY_FLAGS: tuple[RayFlag, ...] = (
    RayFlag(
        "RAY_SERVE_ENABLE_HA_PROXY",
        "1",
        ("controller", "proxy", "router"),
        "the C data plane asks routers directly: 8.2 ms instead of 17-22 ms per two-hop request"
        " with a 110 KB body",
    ),
    RayFlag(
        "RAY_SERVE_THROUGHPUT_OPTIMIZED",
        "1",
        ("controller", "proxy", *REPLICAS),
        "calls by gRPC, the routers of handles on the replica's own loop, user code there too, and"
        " Ray's log lines of requests written by the thousand: 3.6 ms instead of 8.2 ms. Its parts"
        " follow it, except those named below; what is large goes by reference all the same"
        " (serve/transports.py)",
    ),
    RayFlag(
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD",
        "0",
        REPLICAS,
        "a replica's own loop is free as it is: experts and segmenters compute on threads of their"
        " own (DeviceThread), routers in pools, so health checks and cancellation wait for nobody."
        " For experts alone (env_vars in the runtime_env of ray_actor_options, which works) a call"
        " took 1.5 ms instead of 1.7-2.2 and seven started in 8.4 s instead of 8.6-9.3, which is"
        " no difference on a shared machine: there is nothing to gain by a second loop",
    ),
    RayFlag(
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH",
        str(64 * 2**20),
        REPLICAS,
        "gRPC carries what is small (serve/transports.py), but a reply says its size too late: the"
        " default of 4 MiB would fail a large one",
    ),
    RayFlag(
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S",
        str(HARD_STOP_AFTER_S),
        ("controller", "proxy"),
        "a reloaded HAProxy cuts off what it still carries after this: longer than the longest"
        " request and the longest attempt at a job; its 120 s would cut those",
    ),
    RayFlag(
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
        "serve.control_headers:ingress_middleware",
        ("proxy", "router"),
        "the headers by which a client could switch off timeouts and cancellation are taken off"
        " before Serve reads them, also where HAProxy asks the replica directly",
    ),
    RayFlag(
        "RAY_SERVE_HAPROXY_LOG_TARGET",
        "127.0.0.1:9",
        ("proxy",),
        "HAProxy would tell the local syslog of every request: its address, path and query, all of"
        " which may name people. Port 9 discards (RFC 863); routers write lines of their own",
    ),
    RayFlag(
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
        "0.5",
        ("router",),
        "nobody balances load over a laptop: stopping need not wait 30 s for balancers to notice",
        where="laptop",
    ),
    RayFlag(
        "RAY_SERVE_PROXY_MIN_DRAINING_PERIOD_S",
        "0.5",
        ("proxy",),
        "the same for proxies",
        where="laptop",
    ),
    RayFlag(
        "RAY_metrics_report_interval_ms",
        "2000",
        EVERYONE,
        "`sm4ll top` shows what is now; Ray's default of 10 s is for clusters of hundreds of nodes",
        where="laptop",
    ),
    RayFlag(
        "RAY_USAGE_STATS_ENABLED",
        "0",
        ("node",),
        "Ray's usage report would leave the machine, and nobody here reads it",
    ),
)


def flags_for(where: Where) -> Mapping[str, str]:
    """What a process is started with there: on a laptop, also what is for laptops only."""
    return {flag.name: flag.value for flag in RAY_FLAGS if flag.where in ("anywhere", where)}
