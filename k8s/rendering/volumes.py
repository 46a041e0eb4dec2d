"""What a Ray pod mounts: shared memory, room to write, the family, the models."""

from collections.abc import Iterator

from k8s.rendering.family_map import NAME as FAMILY_MAP
from k8s.rendering.shape import ClaimCache, ClusterShape, EphemeralCache, NoCache, NodeCache
from k8s.rendering.units import gib
from k8s.rendering.yaml_text import Document, Line

HOME = "/home/sm4ll"
"""Not the image's /home/ray, in which its Python lies: a volume there would hide it."""
HOME_GIB = 1
FAMILY_DIR = "/etc/sm4ll"
MODELS_DIR = "/models"

# Names that KubeRay looks for: it adds volumes of its own where these are missing, and mounts the
# second into its autoscaler's container as well.
SHARED_MEMORY, RAY_FILES = "shared-mem", "ray-logs"


def mounts(shape: ClusterShape) -> list[Document]:
    mounted = [
        Line(name=SHARED_MEMORY, mountPath="/dev/shm"),
        Line(name="tmp", mountPath="/tmp"),
        Line(name=RAY_FILES, mountPath="/tmp/ray"),
        Line(name="home", mountPath=HOME),
        Line(name="family", mountPath=FAMILY_DIR, readOnly=True),
    ]
    if isinstance(shape.model_cache, EphemeralCache):
        mounted.append(Line(name="models", mountPath=MODELS_DIR))
    elif not isinstance(shape.model_cache, NoCache):
        mounted.append(Line(name="models", mountPath=MODELS_DIR, readOnly=True))
    return [*mounted]


def list_volumes(shape: ClusterShape, shared_memory_gib: float) -> list[Document]:
    in_memory = {"medium": "Memory", "sizeLimit": gib(shared_memory_gib)}
    return [
        Line(name=SHARED_MEMORY, emptyDir=in_memory),
        # Large bodies of requests are spooled here as well.
        Line(name="tmp", emptyDir={"sizeLimit": gib(shape.scratch_gib / 2)}),
        Line(name=RAY_FILES, emptyDir={"sizeLimit": gib(shape.scratch_gib)}),
        Line(name="home", emptyDir={"sizeLimit": gib(HOME_GIB)}),
        Line(name="family", configMap={"name": FAMILY_MAP}),
        *_model_volume(shape),
    ]


def _model_volume(shape: ClusterShape) -> Iterator[Document]:
    cache = shape.model_cache
    if isinstance(cache, ClaimCache):
        claim = {"claimName": cache.claim, "readOnly": True}
        yield Line(name="models", persistentVolumeClaim=claim)
    elif isinstance(cache, NodeCache):
        yield Line(name="models", hostPath={"path": str(cache.path), "type": "Directory"})
    elif isinstance(cache, EphemeralCache):
        spec: Document = {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": gib(cache.size_gib)}},
        }
        if cache.storage_class is not None:
            spec["storageClassName"] = cache.storage_class
        yield {"name": "models", "ephemeral": {"volumeClaimTemplate": {"spec": spec}}}
