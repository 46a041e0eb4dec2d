"""Which weights a family's replicas will ask for, and how: by its bundles, before any runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from deployments.bundle import Bundle
from deployments.judge_models import load_judge
from deployments.recipes import Adapter, Diffusion, ProductAsIpAdapter
from deployments.sources import ModelSource, find_sources
from deployments.weights import FOLDER, PIPELINE, Reading
from serve.config import Config, FamilyConfig, VersionId


@dataclass(frozen=True)
class Need:
    """One source as one kind of reader reads it."""

    source: ModelSource
    reading: Reading
    home: Path
    """What the source's path is relative to."""
    files: tuple[str, ...]
    """Without these, relative to the source's folder, no reader starts."""
    users: tuple[str, ...]
    """Versions, and `judge`."""

    @property
    def label(self) -> str:
        inside = f"/{self.source.subfolder}" if self.source.subfolder else ""
        return f"{self.source.located(self.home).label}{inside}"


def list_needs(
    path: Path, family: FamilyConfig, bundles: Mapping[VersionId, Bundle]
) -> tuple[Need, ...]:
    """Every source of the family once per way of reading it, in the bundles' order.

    Args:
        path: the family's file.

    Raises:
        ConfigError: the file of the judge's models cannot be used.
    """
    found: dict[tuple[ModelSource, Reading, Path], Need] = {}
    for bundle in bundles.values():
        for part in (bundle.backend, bundle.masker):
            _collect(found, part, bundle.home, bundle.version)
    if family.judge is not None:
        models, home = load_judge(path, family.judge)
        _collect(found, models, home, "judge")
    return tuple(found.values())


def _collect(
    found: dict[tuple[ModelSource, Reading, Path], Need], config: Config, home: Path, user: str
) -> None:
    for _, owner, source in find_sources(config):
        reading = PIPELINE if isinstance(owner, Diffusion) and source is owner.model else FOLDER
        # A repository is the same for every bundle, a path is not.
        key = (source, reading, home if source.path is not None else Path())
        files: tuple[str, ...] = _files(owner, source)
        users: tuple[str, ...] = (user,)
        if (known := found.get(key)) is not None:
            files = tuple(dict.fromkeys((*known.files, *files)))
            users = tuple(dict.fromkeys((*known.users, *users)))
        found[key] = Need(source, reading, home, files, users)


def _files(owner: BaseModel, source: ModelSource) -> tuple[str, ...]:
    if isinstance(owner, Adapter):
        return (owner.weight_name,)
    if isinstance(owner, ProductAsIpAdapter):
        encoder = f"{owner.image_encoder_folder}/config.json"
        if "/" in owner.image_encoder_folder:  # from the top of the repository
            encoder = "../" * len(Path(source.subfolder or "").parts) + encoder
        return (owner.weight_name, encoder)
    if isinstance(owner, Diffusion) and source is owner.model:
        return ("model_index.json",)
    return ("config.json",)
