"""Ray's pods: container, volumes, environment, probes; the same for head and workers but for what
each says here."""

from collections.abc import Iterator, Mapping, Sequence

from k8s.rendering.family_map import EXPERIMENTS, FAMILY, TENANTS
from k8s.rendering.pools import Pool
from k8s.rendering.serve_config import POOL_LABEL, SERVE_PORT
from k8s.rendering.shape import ClusterShape, EphemeralCache, GpuProduct, NoCache
from k8s.rendering.units import cores, gib
from k8s.rendering.volumes import FAMILY_DIR, HOME, HOME_GIB, MODELS_DIR
from k8s.rendering.yaml_text import Document, Line
from serve.ray_flags import flags_for
from serve.settings import TRACING_FLAGS

USER = 1000
PART_OF: Mapping[str, str] = {"app.kubernetes.io/part-of": "sm4ll"}
SERVICE_ACCOUNT = "sm4ll-ray"
ENDPOINTS_S = 10.0
"""Until every balancer knows that a pod is gone."""
MARGIN_S = 30

PORTS: Mapping[str, int] = {"serve": SERVE_PORT, "metrics": 8080}
HEAD_PORTS: Mapping[str, int] = {
    "gcs-server": 6379,
    "dashboard": 8265,
    "serve": SERVE_PORT,  # the head serves nobody, but KubeRay takes its services' port from here
    "metrics": 8080,
    "as-metrics": 44217,
    "dash-metrics": 44227,
}

_RAYLET = "http://localhost:52365/api/local_raylet_healthz"
_PROXY = f"http://localhost:{SERVE_PORT}/-/healthz"

STORES = (
    ("SM4LL_DATABASE_URL", "sm4ll-database", "url", False),
    ("SM4LL_REDIS_URL", "sm4ll-redis", "url", False),
    ("SM4LL_BLOBS_URL", "sm4ll-blobs", "url", False),
    ("AWS_ACCESS_KEY_ID", "sm4ll-blobs", "AWS_ACCESS_KEY_ID", True),
    ("AWS_SECRET_ACCESS_KEY", "sm4ll-blobs", "AWS_SECRET_ACCESS_KEY", True),
)
"""What routers and the job runner open, and nobody else: (variable, secret, key, optional)."""
PROVIDERS = (
    ("SM4LL_FASHN_API_KEY", "sm4ll-providers", "fashn", True),
    ("SM4LL_OPENAI_API_KEY", "sm4ll-providers", "openai", True),
)
"""What versions that others paint are paid with. A hosted version that is added while the cluster
runs may start on any worker."""


def env(
    shape: ClusterShape, *, has_gpu: bool, secrets: Sequence[tuple[str, str, str, bool]]
) -> list[Document]:
    plain = dict(_plain_env(shape))
    if not has_gpu:
        # A runtime may show a pod the GPUs of its node although it asks for none (kuberay#2098).
        plain["NVIDIA_VISIBLE_DEVICES"] = "void"
    plain.update(shape.env)
    return [
        *(Line(name=name, value=value) for name, value in plain.items()),
        *(secret_env(*secret) for secret in secrets),
    ]


def secret_env(name: str, secret: str, key: str, optional: bool = False) -> Document:
    reference: Document = {"name": secret, "key": key}
    if optional:
        reference["optional"] = True
    return Line(name=name, valueFrom={"secretKeyRef": reference})


def _plain_env(shape: ClusterShape) -> Iterator[tuple[str, str]]:
    yield "HOME", HOME
    yield "SM4LL_FAMILY", f"{FAMILY_DIR}/{FAMILY}"
    yield "SM4LL_TENANTS", f"{FAMILY_DIR}/{TENANTS}"
    yield "SM4LL_EXPERIMENTS", f"{FAMILY_DIR}/{EXPERIMENTS}"
    # Replicas' lines, besides in Ray's files, in the container's own log: the stderr of its first
    # process, which the runtime gives to the pod's user.
    yield "SM4LL_LOG_PIPE", "/proc/1/fd/2"
    if not isinstance(shape.model_cache, NoCache):
        yield "HF_HOME", f"{MODELS_DIR}/hub"
        if not isinstance(shape.model_cache, EphemeralCache):
            yield "HF_HUB_OFFLINE", "1"
    yield from flags_for("anywhere").items()
    # Fill a pod before the next: the plan counts on it, and what is empty can go.
    yield "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY", "1"
    if shape.otlp_endpoint:
        yield "OTEL_EXPORTER_OTLP_ENDPOINT", shape.otlp_endpoint
        yield from TRACING_FLAGS.items()
        yield "RAY_SERVE_TRACING_SAMPLING_RATIO", str(shape.trace_ratio)
        yield "SM4LL_TRACE_RATIO", str(shape.trace_ratio)


def container_security() -> Document:
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": Line(drop=["ALL"]),
    }


def _pod_security() -> Document:
    return {
        "runAsNonRoot": True,
        "runAsUser": USER,
        "runAsGroup": USER,
        "fsGroup": USER,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": Line(type="RuntimeDefault"),
    }


def resources(
    *, cpu: float, memory_gib: float, scratch_gib: int, gpu: GpuProduct | None = None
) -> Document:
    """No limit of CPUs: see `PodSize.cpu`. The rest is had, not borrowed."""
    device = {gpu.resource: "1"} if gpu else {}
    fixed = {"memory": gib(memory_gib), **device}
    asked = Line({"cpu": cores(cpu), **fixed, "ephemeral-storage": gib(1)})
    return {
        "requests": asked,
        "limits": Line({**fixed, "ephemeral-storage": gib(1.5 * scratch_gib + HOME_GIB)}),
    }


def ports(of: Mapping[str, int]) -> list[Document]:
    return [Line(name=name, containerPort=port) for name, port in of.items()]


def worker_readiness() -> Document:
    """Ready is who answers requests.

    KubeRay's services take every worker of the cluster that is ready, whatever it is labelled and
    whatever a service of ours would select. With HAProxy each node that has a replica, of whichever
    deployment, runs a proxy that asks the routers, wherever they are; a node without one runs none.
    Such a pod is on its way: its replica starts, or the autoscaler takes it away. None stays so,
    for no pool keeps more than the fewest replicas fill however they lie (k8s/rendering/pools.py).

    Source: ray-operator/controllers/ray/common/{pod.go BuildPod, service.go BuildServeService}
    (v1.7.0); ray/serve/_private/haproxy_templates.py (2.60.0).
    """
    ask = " && ".join(
        f"wget --tries 1 -T 2 -q -O- {url} | grep -q success" for url in (_RAYLET, _PROXY)
    )
    return {
        "exec": {"command": ["bash", "-c", ask]},
        "initialDelaySeconds": 5,
        "periodSeconds": 5,
        "timeoutSeconds": 5,
        "failureThreshold": 2,
    }


def drain(longest_request_s: float) -> Document:
    """Serve on until every balancer knows and the longest request is over; `ray stop` here would
    end the proxy at once (kuberay#4799)."""
    command = ["sleep", f"{ENDPOINTS_S + longest_request_s:.0f}"]
    return {"preStop": Line(exec={"command": command})}


def grace_s(longest_request_s: float) -> int:
    return round(ENDPOINTS_S + longest_request_s) + MARGIN_S


def pod_spec(shape: ClusterShape, *, needs_token: bool) -> Document:
    """What every Ray pod's spec begins with."""
    spec: Document = {
        "serviceAccountName": SERVICE_ACCOUNT,
        "automountServiceAccountToken": needs_token,
        "enableServiceLinks": False,
        "securityContext": _pod_security(),
    }
    if shape.priority_class:
        spec["priorityClassName"] = shape.priority_class
    if shape.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in shape.image_pull_secrets]
    return spec


def pool_labels(name: str) -> Document:
    return {**PART_OF, POOL_LABEL: name}


def spread(pool: Pool) -> list[Document]:
    """Over zones, then over hosts; each cluster of an upgrade for itself."""
    return [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": Line(matchLabels={POOL_LABEL: pool.name}),
            "matchLabelKeys": ["ray.io/cluster"],
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]


def on_product(gpu: GpuProduct, kind: str) -> Document:
    """The nodes with that GPU."""
    wanted = {"nvidia.com/gpu.product": gpu.product or kind.replace(" ", "-"), **gpu.node_labels}
    expressions = [Line(key=key, operator="In", values=[value]) for key, value in wanted.items()]
    return {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": expressions}]
            }
        }
    }
