"""A ModelSource as a directory of this machine: found or fetched, safetensors only, verified.

Reads no weights into memory.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2

from deployments.sources import ModelSource
from serve.config import WeightsConfig
from serve.errors import BundleInvalid

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Weights whose reading can run code."""

WEIGHTS = "*.safetensors"
SETTINGS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Configurations and vocabularies: what loading needs besides weights."""
# Repositories repeat their weights in half precision and with training's averages.
DUPLICATES = ("*.fp16*", "*.non_ema*")


class Reading(NamedTuple):
    """Which files of a source are wanted: the same for whoever fetches and whoever loads."""

    patterns: tuple[str, ...]
    ignored: tuple[str, ...] = ()

    def allowed(self, source: ModelSource) -> list[str]:
        """The patterns, within the source's subfolder."""
        inside = f"{source.subfolder}/" if source.subfolder else ""
        return [inside + pattern for pattern in self.patterns]


FOLDER = Reading((WEIGHTS, *SETTINGS))
# One file at the top is all components once more, for single-file readers.
PIPELINE = Reading((f"*/{WEIGHTS}", *SETTINGS), DUPLICATES)


class WeightStore:
    """Finds what one bundle names. Never hands out a directory that it did not check."""

    def __init__(self, home: Path, config: WeightsConfig):
        self._home = home
        self._config = config

    def locate(self, source: ModelSource) -> str:
        """The directory with the source's weights, its subfolder entered.

        Raises:
            BundleInvalid: not there, not reachable, pickles only, or not what sha256 says.
        """
        return str(self.find(source, FOLDER))

    def locate_root(self, source: ModelSource) -> str:
        """The same, checked the same, for readers who enter the subfolder themselves."""
        root = self._root(source, FOLDER)
        self._checked(source, root)
        return str(root)

    def locate_pipeline(self, source: ModelSource) -> str:
        """A whole pipeline: like `locate`, without what a repository holds for other readers."""
        return str(self.find(source, PIPELINE))

    def find(self, source: ModelSource, reading: Reading) -> Path:
        """What the three above find: the source's own folder, checked as they check it."""
        return self._checked(source, self._root(source, reading))

    def _root(self, source: ModelSource, reading: Reading) -> Path:
        path = source.located(self._home).path
        if path is None:
            return self._fetch(source, reading)
        if not path.is_dir():
            raise BundleInvalid(
                f"{path}: no such directory",
                remedy="paths in a bundle are relative to its file; put the weights there",
            )
        return path

    def _fetch(self, source: ModelSource, reading: Reading) -> Path:
        # Half a second to import, and of no use to whoever reads directories.
        from huggingface_hub import snapshot_download

        config = self._config
        try:
            folder = snapshot_download(
                source.repo,
                revision=source.revision,
                cache_dir=config.cache_dir,
                local_files_only=config.local_files_only,
                allow_patterns=reading.allowed(source),
                ignore_patterns=list(reading.ignored),
            )
        except (OSError, ValueError, httpx2.HTTPError) as exc:
            raise BundleInvalid(
                f"{source.label}: {type(exc).__name__}: {exc}", remedy=self._fetch_remedy()
            ) from exc
        return Path(folder)

    def _fetch_remedy(self) -> str:
        if self._config.local_files_only:
            place = self._config.cache_dir or "the hub library's cache"
            return f"put that commit into {place}, or set weights.local_files_only: false"
        return "check name, revision, access token and network, or name a local path instead"

    def _checked(self, source: ModelSource, root: Path) -> Path:
        folder = root / (source.subfolder or "")
        _require_safetensors(folder, source)
        if source.sha256 is not None and (digest := digest_weights(folder)) != source.sha256:
            raise BundleInvalid(
                f"{folder}: the files have digest {digest}, the bundle pins {source.sha256}",
                remedy="restore the files, or make a new version of what they are now",
            )
        return folder


def digest_weights(folder: Path) -> str:
    """SHA-256 that pins a directory of weights as a commit pins a repository.

    Returns:
        The digest of lines `<file's sha256>  <relative name>`, sorted by name, over every
        safetensors and JSON file: what `sha256sum` would print.
    """
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in _visible_files(folder)
        if path.suffix in (".safetensors", ".json")
    )
    digest = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            digest.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
    return digest.hexdigest()


def _require_safetensors(folder: Path, source: ModelSource) -> None:
    files = list(_visible_files(folder))
    safe_folders = {path.parent for path in files if path.suffix == ".safetensors"}
    for path in files:
        if path.suffix in PICKLES and path.parent not in safe_folders:
            raise BundleInvalid(
                f"{path} is a pickle, which can run code, and there is no safetensors beside it",
                remedy="convert with save_pretrained(safe_serialization=True)",
            )
    if not safe_folders:
        raise BundleInvalid(
            f"{folder} of {source.label} holds no safetensors",
            remedy="check path, subfolder and revision",
        )


def _visible_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path
