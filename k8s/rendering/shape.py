"""The shape of a cluster, read from configs/kubernetes.yaml: what no family and no plan says."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from serve.config import Config, load_yaml

Overlay = Literal["local", "production"]
OVERLAYS: tuple[Overlay, ...] = ("local", "production")

RAY_VERSION = "2.60.0"
"""Of the image's Ray; the same that pyproject.toml pins."""

Role = Literal["router", "segment", "light-cpu", "light-gpu", "heavy-gpu"]
"""What a pool of pods is for. One pod of the last two has one GPU (or slice of one)."""
ROLES: tuple[Role, ...] = ("router", "segment", "light-cpu", "light-gpu", "heavy-gpu")

MAX_NAME = 47
"""KubeRay makes names from a RayService's that must fit in 63 characters.

Source: ray-operator/controllers/ray/utils/validation.go, MaxRayServiceNameLength (v1.7.0).
"""

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
LabelValue = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$")]


class PodSize(Config):
    """One pod of a pool, and how many replicas it takes."""

    cpu: PositiveInt
    """What Ray may hand out in the pod, and, unless `cpu_request` says otherwise, what it asks
    Kubernetes for. There is no limit of it: a throttled router is a slow one."""
    cpu_request: PositiveFloat | None = None
    """Of Kubernetes, where it is not `cpu`: a laptop has few, and its pods are mostly idle."""
    memory_gib: PositiveFloat
    """For processes. Shared memory comes on top of it, in the same limit."""
    replica_cpus: PositiveFloat | None = None
    """What Ray reserves for each replica, and so how many fit; what the family says of the
    deployment (`resources.num_cpus`, made for one machine) when absent."""
    shared_memory_gib: PositiveFloat | None = None
    """Of /dev/shm. It must hold what may be in flight (k8s/rendering/shared_memory.py); sized by
    that when absent: then an edit of the family may change it, and so make a new cluster."""
    spare_pods: NonNegativeInt = 0
    """That the pool may have beyond what the plan needs: for versions that are added while the
    cluster runs, for replicas that start before those they replace stop, and because Ray fills
    pods one replica at a time, not by the plan."""


class HeadSize(Config):
    """The head: the controller, the autoscaler and Ray's own tables, and no replica."""

    cpu: PositiveFloat = 2
    memory_gib: PositiveFloat = 8


class GpuProduct(Config):
    """How one kind of GPU of the placement is found in Kubernetes."""

    name: Name
    """In names of pools: `light-gpu-l4`."""
    product: LabelValue | None = None
    """Of the node's label `nvidia.com/gpu.product`, as GPU feature discovery writes it; the
    kind with dashes for spaces when absent. Time slicing appends `-SHARED`."""
    resource: str = Field(
        default="nvidia.com/gpu", pattern=r"^nvidia\.com/(gpu(\.shared)?|mig-\d+g\.\d+gb)$"
    )
    """One of it is a pod's GPU. A MIG slice (`nvidia.com/mig-1g.10gb`, strategy `mixed`) has memory
    of its own and is a kind of its own in the placement. A time-sliced one (`nvidia.com/gpu.shared`
    where the device plugin renames) shares all memory with others that nobody accounts for."""
    node_labels: Mapping[str, LabelValue] = Field(default_factory=dict)
    """More labels that its nodes must have."""


class Toleration(Config):
    """A taint that pods may ignore."""

    key: str
    value: str | None = None
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"] = "NoSchedule"


class ClaimCache(Config):
    """Weights on a volume that every node can mount (ReadWriteMany), filled by the prefetch Job."""

    kind: Literal["claim"] = "claim"
    claim: Name = "sm4ll-models"


class NodeCache(Config):
    """Weights on the nodes' own disks: somebody fills them, for example a DaemonSet."""

    kind: Literal["node"] = "node"
    path: Path = Path("/mnt/disks/sm4ll-models")


class EphemeralCache(Config):
    """A new volume for every pod, which fetches what it needs when it starts: the hub is asked, so
    the pod needs a way to it (and the family `weights.local_files_only: false`)."""

    kind: Literal["ephemeral"] = "ephemeral"
    storage_class: str | None = None
    size_gib: PositiveInt = 100


class NoCache(Config):
    """No version has weights."""

    kind: Literal["none"] = "none"


ModelCache = Annotated[
    ClaimCache | NodeCache | EphemeralCache | NoCache, Field(discriminator="kind")
]


class Bounds(Config):
    """How many replicas there may be."""

    min_replicas: PositiveInt
    max_replicas: PositiveInt

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        return self


class Upgrade(Config):
    """How KubeRay replaces the cluster when one is needed."""

    strategy: Literal["NewCluster", "NewClusterWithIncrementalUpgrade"] = "NewCluster"
    """NewCluster: a whole second cluster, then all traffic at once. Incremental: it grows as the
    old one shrinks, traffic follows by weights; needs the Gateway API."""
    gateway_class: str | None = None
    surge_percent: int = Field(default=50, ge=1, le=100)
    """Of the capacity that moves at a time: 100 is a whole second cluster's GPUs."""
    step_percent: int = Field(default=10, ge=1, le=100)
    """Of the traffic that moves every `interval_s`."""
    interval_s: PositiveInt = 30

    @model_validator(mode="after")
    def _incremental_needs_a_gateway(self) -> Self:
        if self.strategy == "NewClusterWithIncrementalUpgrade" and self.gateway_class is None:
            raise ValueError("gateway_class is missing: traffic moves through a Gateway of it")
        if self.step_percent > self.surge_percent:
            raise ValueError("step_percent is above surge_percent, which KubeRay refuses")
        return self


class ClusterShape(Config):
    """One way to run the family on Kubernetes."""

    name: Name = Field(default="sm4ll", max_length=MAX_NAME)
    """Of the RayService."""
    namespace: Name = "sm4ll"
    image: str = "sm4ll-serve"
    """Its name and tag are an overlay's to say (`images:` of kustomize)."""
    gpu_image: str = "sm4ll-serve-gpu"
    """Of pods with a GPU, and of those without where something has weights: it has PyTorch."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    image_pull_secrets: tuple[Name, ...] = ()
    head: HeadSize = HeadSize()
    pods: Mapping[Role, PodSize]
    """By role; those of a GPU may be left out where no version needs one."""
    routers: Bounds | None = None
    """In place of the family's, made for one machine: with two at least, a node may die."""
    segmenters: Bounds | None = None
    """The same of each segmenter."""
    gpus: Mapping[str, GpuProduct] = Field(default_factory=dict)
    """By kind, as the placement calls it."""
    gpu_tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu"),)
    runtime_class: str | None = None
    """Of pods with a GPU, where NVIDIA's is not the default of containerd."""
    group_order: tuple[Name, ...] = ()
    """Pools that the running cluster has, in its order; others come after them. KubeRay takes new
    groups in place at the end of its list only: without this, a first light version on a new kind
    of GPU would stand before the heavy ones, and make a new cluster."""
    placement: Path | None = None
    """GPUs to plan for, relative to this file; none: every version runs on CPUs."""
    model_cache: ModelCache = NoCache()
    scratch_gib: PositiveInt = 20
    """Of a pod's own disk: logs, and what the object store spills."""
    surge_percent: int = Field(default=100, ge=0, le=100)
    """Replicas on CPUs that start before those they replace stop, in percent: 0 means that the only
    replica of an expert is missing while a new one starts."""
    idle_timeout_s: PositiveInt = 300
    """A pod without replicas goes after this."""
    upgrade: Upgrade = Upgrade()
    gcs_fault_tolerance: bool = False
    """Ray's tables in Redis (secret `sm4ll-redis`, keys `address` and `password`): a new head goes
    on with the cluster, which otherwise dies with the old one."""
    token_auth: bool = False
    """Ray's dashboard and its RPC ask for a token (secret `sm4ll-ray-token`, key `auth_token`)."""
    spread_over_zones: bool = False
    """Routers over zones and hosts, as far as that is possible."""
    priority_class: Name | None = None
    kueue_queue: Name | None = None
    """The label `kueue.x-k8s.io/queue-name` of the RayService."""
    otlp_endpoint: str | None = None
    """Where spans go, by OTLP over HTTP; nothing is traced when absent."""
    trace_ratio: float = Field(default=0.05, ge=0, le=1)
    env: Mapping[str, str] = Field(default_factory=dict)
    """More variables of every Ray container. No secrets: those come by reference."""

    @model_validator(mode="after")
    def _cpu_roles_have_a_size(self) -> Self:
        missing = [role for role in ("router", "segment", "light-cpu") if role not in self.pods]
        if missing:
            raise ValueError(f"pods: no size for {', '.join(missing)}")
        return self

    @model_validator(mode="after")
    def _gpu_names_are_unique(self) -> Self:
        names = [gpu.name for gpu in self.gpus.values()]
        if len(set(names)) != len(names):
            raise ValueError("gpus: two kinds have the same name")
        return self


class Shapes(Config):
    """The file: a shape for each overlay."""

    local: ClusterShape
    production: ClusterShape


def load_shape(path: Path, overlay: Overlay) -> ClusterShape:
    """
    Raises:
        ConfigError: the file cannot be used; names it and the key.
    """
    shape: Any = getattr(load_yaml(path, Shapes), overlay)
    assert isinstance(shape, ClusterShape)
    return shape
