"""Families of measured diffusion experts, and shapes of clusters, for what is rendered of them."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deployments.bundle import load_family
from deployments.packing.placement import Placement
from k8s.render import Planned, plan_service
from k8s.rendering.family_map import FamilyFiles
from k8s.rendering.pools import PlannedCluster, plan_cluster
from k8s.rendering.shape import ClusterShape, load_shape
from serve.config import load_yaml
from serve.settings import CONFIGS_DIR
from tests.measured_family import L4, write_bundle, write_footprint

H100 = "NVIDIA H100 80GB HBM3"
SIZES_GIB = {L4: 22.5, H100: 79.6}
MODEL = {"repo": "black-forest-labs/FLUX.2-klein", "revision": "a" * 40}
LIGHT, HEAVY = ("eye", "shoes", "face", "bg"), ("top", "bottom", "dress")
SHAPES = CONFIGS_DIR / "kubernetes.yaml"


def write_measured(folder: Path, version: str, peaks_gib: Mapping[str, float]) -> None:
    """A version with weights on the hub and what it needs on each kind of GPU."""
    changes: dict[str, Any] = {"backend": {"model": MODEL}}
    bundle = write_bundle(folder, version, **changes)
    for kind, peak_gib in peaks_gib.items():
        write_footprint(bundle, peak_gib, device=kind, device_gib=SIZES_GIB[kind])


def write_seven(
    folder: Path,
    light_gib: Mapping[str, float],
    heavy_gib: Mapping[str, float],
    *,
    light: Mapping[str, int],
    heavy: Mapping[str, int],
) -> Path:
    """The whole family on diffusion.

    Args:
        light: bounds of the replicas of each light expert; heavy: of each other.
    """
    experts = []
    for names, peaks_gib, bounds in ((LIGHT, light_gib, light), (HEAVY, heavy_gib, heavy)):
        for name in names:
            write_measured(folder, f"{name}@1", peaks_gib)
            experts.append({"version": f"{name}@1", "autoscaling": dict(bounds)})
    return write_yaml(folder / "family.yaml", {"experts": experts})


def write_gpus(folder: Path, nodes: Sequence[tuple[str, int, str, int]], **rules: Any) -> Path:
    """
    Args:
        nodes: name, how many alike, kind of GPU, how many of it in each.
    """
    written = [
        {
            "name": name,
            "count": count,
            "gpus": [{"name": kind, "gib": SIZES_GIB[kind], "count": num_gpus}],
        }
        for name, count, kind, num_gpus in nodes
    ]
    return write_yaml(folder / "placement.yaml", {"nodes": written, **rules})


def write_yaml(path: Path, document: Any) -> Path:
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def files_of(family: Path) -> FamilyFiles:
    return FamilyFiles(family, CONFIGS_DIR / "tenants.yaml", CONFIGS_DIR / "experiments.yaml")


@cache
def shipped_shape() -> ClusterShape:
    return load_shape(SHAPES, "production")


def production(**changes: Any) -> ClusterShape:
    """The shipped shape with some fields changed; checked as if read from the file."""
    return ClusterShape.model_validate({**shipped_shape().model_dump(), **changes})


def plan(family: Path, placement: Path | None, shape: ClusterShape | None = None) -> PlannedCluster:
    config, bundles = load_family(family)
    rules = load_yaml(placement, Placement) if placement else None
    return plan_cluster(config, bundles, shape or production(), rules)


def plan_production(family: Path, placement: Path | None = None, shapes: Path = SHAPES) -> Planned:
    return plan_service("production", shapes, files_of(family), placement)


def serve_config_of(service: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return document
