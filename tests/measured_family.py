"""A family of diffusion versions with footprints beside their bundles, and no weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from deployments.bundle import Bundle, bundle_path, load_bundle
from deployments.measured import Footprint, Peak, save_footprint
from deployments.packing.placement import Placement
from serve.config import FamilyConfig, load_yaml

L4 = "NVIDIA L4"


def write_bundle(folder: Path, version: str, **changes: Any) -> Bundle:
    """A klein version with two crop sizes, the larger 768x1024."""
    expert, name = version.split("@")
    backend = {
        "kind": "inpaint",
        "model": {"path": "weights/klein"},
        "product_cache_mib": 1,
        "prompt": {"text": "the person wears the product"},
        "recipe": {"pipeline": "Flux2KleinInpaintPipeline"},
    }
    bundle = {
        **{"expert": expert, "name": name, "title": f"{version} on klein", "status": "beta"},
        "licence": {"name": "apache-2.0", "commercial_use": True},
        "backend": {**backend, **changes.pop("backend", {})},
        "crop": {"sizes": [[512, 512], [768, 1024]]},
        "product": {"canvas": {"size": [512, 512]}},
        **changes,
    }
    path = bundle_path(folder / "experts", version)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(bundle))
    return load_bundle(path)


def write_footprint(bundle: Bundle, peak_gib: float, **changes: Any) -> Footprint:
    """What `sm4ll profile` would leave, for 768x1024 at batch 1."""
    known = {
        **{"device": L4, "device_gib": 22.5, "torch": "2.13.0", "date": "2026-11-23"},
        **{"weights_gib": 0.8 * peak_gib, "load_s": 9.0},
        "peaks": [Peak(width_px=768, height_px=1024, batch=1, peak_gib=peak_gib).model_dump()],
    }
    footprint = Footprint.model_validate({**known, **changes})
    save_footprint(bundle, footprint)
    return footprint


def write_family(folder: Path, text: str) -> Path:
    path = folder / "family.yaml"
    path.write_text(text)
    return path


def write_placement(folder: Path, **changes: Any) -> Path:
    """Two nodes with two L4 each, nothing kept free."""
    gpus = [{"name": L4, "gib": 22.5, "count": 2}]
    nodes = [{"name": "gpu-a", "gpus": gpus}, {"name": "gpu-b", "gpus": gpus}]
    path = folder / "placement.yaml"
    path.write_text(yaml.safe_dump({"nodes": nodes, "reserve": 0.0, **changes}))
    return path


def read_placement(folder: Path, **changes: Any) -> Placement:
    return load_yaml(write_placement(folder, **changes), Placement)


def read_family(text: str) -> FamilyConfig:
    return FamilyConfig.model_validate(yaml.safe_load(text))


def by_version(*bundles: Bundle) -> Mapping[str, Bundle]:
    return {bundle.version: bundle for bundle in bundles}
