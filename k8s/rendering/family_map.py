"""The documents of a family as one ConfigMap: flat, since a mounted one has no folders, and a list
of paths would be part of every pod, so that a new version were a new cluster."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deployments.bundle import Bundle, bundle_path
from deployments.golden_set import golden_folder
from deployments.judge_models import load_judge
from deployments.measured import FOOTPRINT_FILE, flat_footprint_path
from deployments.sources import find_sources
from k8s.rendering.monitoring import LABELS
from serve.config import FamilyConfig, VersionId
from serve.errors import ConfigError

NAME = "sm4ll-family"
MAX_BYTES = 1_000_000
"""A ConfigMap holds 1 MiB, and what it is wrapped in counts too.

Source: https://kubernetes.io/docs/concepts/configuration/configmap/, "Motivation".
"""
FAMILY, JUDGE, TENANTS, EXPERIMENTS = (
    "family.yaml",
    "judge.yaml",
    "tenants.yaml",
    "experiments.yaml",
)


@dataclass(frozen=True, slots=True)
class FamilyFiles:
    """Where the documents of one installation lie."""

    family: Path
    tenants: Path
    experiments: Path


def build_family_map(
    files: FamilyFiles, family: FamilyConfig, bundles: Mapping[VersionId, Bundle]
) -> dict[str, Any]:
    """
    Args:
        family: as it is to be served, shares of GPUs as planned.

    Raises:
        ConfigError: a bundle names files that lie beside it, which cannot travel; or all is too
            large.
    """
    written = family.model_dump(mode="json", exclude_unset=True)
    data = {FAMILY: ""}
    if family.bundles_dir.is_absolute():
        travelling: Mapping[VersionId, Bundle] = {}
    else:
        travelling = bundles
        written = {"bundles_dir": ".", **{k: v for k, v in written.items() if k != "bundles_dir"}}
    for version in sorted(travelling):
        data |= _bundle_files(bundles[version], version)
    if family.judge is not None:
        written["judge"] = {**written["judge"], "models": JUDGE}
        data[JUDGE] = _judge_file(files.family, family)
    text = yaml.safe_dump(written, sort_keys=False, default_flow_style=None, width=100)
    data[FAMILY] = f"# As planned; made from {files.family.name}.\n{text}"
    data[TENANTS] = files.tenants.read_text(encoding="utf-8")
    data[EXPERIMENTS] = files.experiments.read_text(encoding="utf-8")
    _check_size(data)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "labels": dict(LABELS)},
        "data": data,
    }


def _bundle_files(bundle: Bundle, version: VersionId) -> dict[str, str]:
    path = bundle_path(bundle.home, version)
    golden = golden_folder(bundle)
    if golden.is_dir():
        raise _stays(path, f"{golden}: golden samples are pictures")
    _check_sources(path, bundle)
    files = {path.name: path.read_text(encoding="utf-8")}
    for measured in (bundle.folder / FOOTPRINT_FILE, flat_footprint_path(bundle.folder)):
        if measured.is_file():
            name = flat_footprint_path(bundle.folder).name
            files.setdefault(name, measured.read_text(encoding="utf-8"))
    return files


def _judge_file(family: Path, config: FamilyConfig) -> str:
    assert config.judge is not None
    path = (family.parent / config.judge.models).resolve()
    models, _ = load_judge(family, config.judge)
    _check_sources(path, models)
    return path.read_text(encoding="utf-8")


def _check_sources(path: Path, config: Any) -> None:
    for place, _, source in find_sources(config):
        if source.path is not None and not source.path.is_absolute():
            raise _stays(path, f"{place}.path: {source.path} lies beside it")


def _stays(path: Path, what: str) -> ConfigError:
    return ConfigError(
        f"{path}: cannot travel in a ConfigMap: {what}. Put the bundles into the image or on the "
        "model volume, and say where in the family file (bundles_dir: /models/experts, which must "
        "also be there when this is rendered); or name weights by repo, or by an absolute path"
    )


def _check_size(data: Mapping[str, str]) -> None:
    num_bytes = sum(len(name) + len(text.encode()) for name, text in data.items())
    if num_bytes > MAX_BYTES:
        largest = max(data, key=lambda name: len(data[name]))
        raise ConfigError(
            f"the family's documents are {num_bytes:,} bytes, and a ConfigMap holds "
            f"{MAX_BYTES:,}; the largest is {largest}: put the bundles into the image "
            "(bundles_dir: an absolute path)"
        )
