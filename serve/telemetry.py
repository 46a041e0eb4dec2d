"""The names of everything that is measured: stages, spans, attributes and metrics, in one place.

Only tables: what records by these names is serve/observing/. Dashboards and alerts are checked
against them, so a name that is not here is on no picture either.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

STAGES: Mapping[str, str] = {
    "authenticate": "find whose key it is and what it may do",
    "admit": "count against the tenant's minute and its requests at once",
    "read": "read and parse the request body",
    "choose": "choose the version: named, pinned, by an experiment, or the default",
    "fetch": "fetch the pictures that are given by URL or by id",
    "decode": "decode and hash person and product, prepare the copies",
    "segment": "find the region (segmenter replica, transfer included)",
    "plan": "crop plan and the crop at the expert's size",
    "reserve": "reserve what the work will take in the tenant's budget",
    "queue": "wait for a permit to ask the expert, in fair order",
    "expert": "paint (expert replica, transfer included)",
    "paste": "paste back at the original size",
    "encode": "encode the answer",
    "prove": "decode the answer and compare every pixel outside the region",
    "settle": "write down what the work took, in the ledger",
    "answer": "write the receipt and the answer",
}
"""In the order of a request; each is a span, an entry of `Server-Timing` and of the receipt."""

SPANS: Mapping[str, str] = {
    "request": "one HTTP request in the router, named by method and route",
    "attempt": "one attempt at a job in a router; linked to the request that made the job",
    **STAGES,
    "send": "write the answer to the connection; too late for `Server-Timing`, which it carries",
    "segmenter": "one picture in a segmenter replica, its wait for the batch included",
    "painter": "one request in an expert replica, its wait for the pass included",
}

EVENTS: Mapping[str, str] = {
    "pass": "the pass that the request is in begins (painter)",
    "step": "one denoising step of that pass is done (painter)",
}

ATTRIBUTES: Mapping[str, str] = {
    "http.request.method": "GET, POST, ... (OpenTelemetry HTTP conventions)",
    "http.route": "the path's template, never the path itself (OpenTelemetry HTTP conventions)",
    "http.response.status_code": "of the answer (OpenTelemetry HTTP conventions)",
    "error.type": "the problem's code, where there is one (OpenTelemetry)",
    "gen_ai.operation.name": "always image_generation (OpenTelemetry GenAI conventions)",
    "gen_ai.request.model": "the version that paints (OpenTelemetry GenAI conventions)",
    "gen_ai.request.seed": "what the noise is drawn from (OpenTelemetry GenAI conventions)",
    "sm4ll.request_id": "the request's id, as in logs and in X-Request-Id",
    "sm4ll.tenant": "whose key it is",
    "sm4ll.expert": "eye, shoes, face, top, bottom, dress or bg",
    "sm4ll.version": "expert@name",
    "sm4ll.experiment": "the experiment that chose the version",
    "sm4ll.arm": "the arm it chose; explicit, pinned or default where none did",
    "sm4ll.job": "the job an attempt is at",
    "sm4ll.masker": "what finds the region",
    "sm4ll.cached": "whether the answer was remembered",
    "sm4ll.batch_size": "pictures in the pass",
    "sm4ll.step": "number of the step that is done, from 1",
    "sm4ll.num_steps": "steps of the pass",
}

CacheName = Literal["regions", "products", "analyses", "cutouts", "encodings"]

CACHES: Mapping[CacheName, str] = {
    "regions": "where a router may have a picture changed: the segmenter is not asked again",
    "products": "product pictures decoded and laid out, in a router",
    "analyses": "what a masker found out about pictures, in a segmenter replica",
    "cutouts": "products cut out and read, in a replica that warps",
    "encodings": "products as a diffusion base sees them, in its replica",
}
"""What is remembered, by content and tenant: values of the label `cache`."""

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal["1", "seconds", "bytes", "usd", "ratio"]

METRIC_PREFIX = "ray_"
"""Ray's exporter puts this before every name."""

# Ray's agent keeps how many fell into each bucket and exports as a sum that many middles of it:
# means are as good as buckets are narrow. Steps of about 1.4 leave them within some 15 %.
FAST_S = (
    *(0.001, 0.0015, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 60.0),
)
# For each of fifty routes and every router: with the finer ones a scrape took megabytes.
ROUTE_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0)
BODY_BYTES = (1e4, 1e5, 3e5, 1e6, 3e6, 1e7, 3e7, 1e8)
# Their middles are the whole numbers.
ROWS = (0.5, 1.5, 2.5, 3.5, 4.5, 6.5, 8.5, 12.5, 16.5)


@dataclass(frozen=True, slots=True)
class Metric:
    """One line of the table. Serve adds the labels application, deployment and replica."""

    kind: Kind
    unit: Unit
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram, in its unit."""


def _counter(unit: Unit, description: str, *labels: str) -> Metric:
    return Metric("counter", unit, description, labels)


def _gauge(unit: Unit, description: str, *labels: str) -> Metric:
    return Metric("gauge", unit, description, labels)


def _histogram(
    unit: Unit, description: str, *labels: str, buckets: tuple[float, ...] = FAST_S
) -> Metric:
    return Metric("histogram", unit, description, labels, buckets)


METRICS: Mapping[str, Metric] = {
    # Requests: rate, errors, duration by route.
    "sm4ll_http_requests_total": _counter(
        "1", "HTTP requests that were answered", "route", "method", "status"
    ),
    "sm4ll_http_request_duration_seconds": _histogram(
        "seconds",
        "from the first byte of the head to the last of the answer",
        "route",
        buckets=ROUTE_S,
    ),
    "sm4ll_http_requests_in_progress": _gauge("1", "HTTP requests that are being answered"),
    "sm4ll_http_request_body_bytes": _histogram(
        "bytes", "bodies of requests as they were received", "route", buckets=BODY_BYTES
    ),
    "sm4ll_refusals_total": _counter("1", "answers that are problems", "route", "code"),
    # Try-ons.
    "sm4ll_tryons_total": _counter(
        "1",
        "try-ons that ended; code is ok or the problem's, way is request or job",
        *("expert", "version", "way", "code"),
    ),
    "sm4ll_tryon_duration_seconds": _histogram(
        "seconds",
        "try-ons that succeeded, from arrival to answer; of a job, the attempt",
        *("expert", "version", "way"),
    ),
    "sm4ll_stage_duration_seconds": _histogram(
        "seconds", "one stage of 0.5 ms or more of try-ons that succeeded", "stage", "expert"
    ),
    "sm4ll_images_total": _counter("1", "pictures delivered", "expert", "version"),
    "sm4ll_gpu_seconds_total": _counter(
        "seconds", "time of the device that delivered pictures took", "expert", "version"
    ),
    "sm4ll_cost_usd_total": _counter(
        "usd", "GPU time at the family's price, and what others charged", "expert", "version"
    ),
    "sm4ll_outside_violations_total": _counter(
        "1",
        "lossless answers that differed outside the region and were withheld: must stay 0",
        *("expert", "version"),
    ),
    # Tenants: only the busiest by name, the rest as one.
    "sm4ll_tenant_requests_total": _counter(
        "1", "HTTP requests by tenant; code is ok or the problem's", "tenant", "code"
    ),
    "sm4ll_tenant_gpu_seconds_total": _counter("seconds", "GPU time by tenant", "tenant"),
    "sm4ll_tenant_cost_usd_total": _counter("usd", "what a tenant's work cost", "tenant"),
    "sm4ll_tenant_tryon_duration_seconds": _histogram(
        "seconds", "try-ons that succeeded, by tenant", "tenant"
    ),
    # Admission.
    "sm4ll_queue_depth": _gauge("1", "requests that wait for a permit", "version", "class"),
    "sm4ll_queue_gpu_seconds": _gauge(
        "seconds", "predicted device time of what waits for a permit", "version", "class"
    ),
    "sm4ll_queue_wait_seconds": _histogram(
        "seconds", "wait for a permit, of requests that got one", "version", "class"
    ),
    "sm4ll_permits": _gauge("1", "permits of this router", "version"),
    "sm4ll_permits_in_use": _gauge("1", "permits of this router that are taken", "version"),
    "sm4ll_replicas": _gauge("1", "running replicas as this router knows of them", "version"),
    # Replicas: utilisation, saturation, errors.
    "sm4ll_replica_busy_seconds_total": _counter(
        "seconds", "time this replica's device thread computed", "version"
    ),
    "sm4ll_replica_queue_depth": _gauge("1", "requests that wait in this replica", "version"),
    "sm4ll_replica_errors_total": _counter(
        "1", "requests that failed in this replica; whoever left has not", "version", "code"
    ),
    "sm4ll_batch_size": _histogram("1", "requests in one pass", "version", buckets=ROWS),
    "sm4ll_batch_wait_seconds": _histogram(
        "seconds", "from arrival in the replica to the beginning of the pass", "version"
    ),
    "sm4ll_pass_duration_seconds": _histogram("seconds", "one pass", "version"),
    "sm4ll_step_duration_seconds": _histogram("seconds", "one denoising step", "version"),
    "sm4ll_segment_duration_seconds": _histogram(
        "seconds", "one picture in a segmenter, its wait for the batch included", "masker"
    ),
    "sm4ll_segment_batch_size": _histogram("1", "pictures in one batch", "masker", buckets=ROWS),
    "sm4ll_replica_start_seconds": _gauge(
        "seconds", "loading, warming up and checking of this replica", "version"
    ),
    "sm4ll_replica_memory_bytes": _gauge("bytes", "resident memory of this process"),
    "sm4ll_replica_gpu_memory_bytes": _gauge(
        "bytes", "GPU memory that this process holds, in equal parts by version", "version"
    ),
    "sm4ll_replica_gpu_share_ratio": _gauge(
        "ratio",
        "share of one GPU that this replica was given, in equal parts by version",
        "version",
    ),
    "sm4ll_gpu_memory_used_bytes": _gauge("bytes", "memory in use, by NVML", "gpu"),
    "sm4ll_gpu_memory_total_bytes": _gauge("bytes", "memory of the GPU, by NVML", "gpu"),
    "sm4ll_gpu_utilization_ratio": _gauge("ratio", "time with a kernel running, by NVML", "gpu"),
    # What is remembered.
    "sm4ll_cache_requests_total": _counter(
        "1", "look-ups in what is remembered; outcome is hit or miss", "cache", "outcome"
    ),
    "sm4ll_cache_bytes": _gauge("bytes", "held by what is remembered", "cache"),
    # Experiments and rollouts.
    "sm4ll_exposures_total": _counter(
        "1",
        "requests in experiments; outcome is ok, failure, or other where no version is to blame",
        *("experiment", "arm", "outcome"),
    ),
    "sm4ll_exposure_duration_seconds": _histogram(
        "seconds", "requests in experiments that succeeded", "experiment", "arm"
    ),
    "sm4ll_exposures_lost_total": _counter("1", "exposures that could not be written down"),
    "sm4ll_rollout_share_ratio": _gauge(
        "ratio", "share of requests that the challenger gets", "rollout", "version"
    ),
    "sm4ll_rollout_decisions_total": _counter(
        "1", "decisions that the controller of rollouts made", "decision"
    ),
    # Jobs.
    "sm4ll_jobs": _gauge(
        "1", "jobs that are not ended: queued, delayed until their time, running", "state", "class"
    ),
    "sm4ll_job_oldest_seconds": _gauge(
        "seconds", "since when the oldest of the queued jobs could run", "class"
    ),
    "sm4ll_job_attempts_total": _counter("1", "attempts at jobs that ended", "outcome"),
    "sm4ll_webhooks_total": _counter("1", "deliveries of webhooks", "outcome"),
    # The ledger and the store.
    "sm4ll_settlements_total": _counter("1", "charges that ended, by how", "outcome"),
    "sm4ll_store_errors_total": _counter("1", "times that the database did not answer"),
    # The process.
    "sm4ll_event_loop_lag_seconds": _histogram(
        "seconds", "how late the event loop came to a timer", buckets=FAST_S
    ),
    "sm4ll_image_copies_total": _counter(
        "1", "full-size copies of pictures that were made", "kind"
    ),
    "sm4ll_named_tenants": _gauge("1", "tenants with a label of their own in this process"),
    "sm4ll_build_info": _gauge("1", "always 1", "build"),
}
