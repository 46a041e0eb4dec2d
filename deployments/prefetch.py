"""Brings what a family's replicas will read into the cache, and says what is missing.

Loads nothing. What counts as there is decided by the code that replicas find weights with.
"""

import json
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from deployments.hub import (
    HubFile,
    download_file,
    find_cache,
    find_leftovers,
    keep_listing,
    list_files,
)
from deployments.needed import Need
from deployments.weights import WeightStore
from serve.config import WeightsConfig
from serve.errors import BundleInvalid

KEPT_FREE_BYTES = 2**28
"""Listings, locks and what else writes to the disk meanwhile."""
LEFTOVER_AGE_S = 3600.0

Commit = tuple[str | None, str | None]
Failures = dict[Commit, BundleInvalid]


@dataclass(frozen=True)
class Looked:
    """What of one need is there."""

    need: Need
    files: tuple[HubFile, ...] = ()
    """Of a hub repository; empty for a directory, and where nobody knows them."""
    problem: BundleInvalid | None = None
    """Why a replica would not start on it."""

    @property
    def num_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files)

    @property
    def missing(self) -> tuple[HubFile, ...]:
        return tuple(file for file in self.files if not file.is_cached)

    @property
    def missing_bytes(self) -> int:
        return sum(file.num_bytes for file in self.files if not file.is_held)

    @property
    def is_ready(self) -> bool:
        return self.problem is None


@dataclass(frozen=True)
class Download:
    """One file that is to come."""

    need: Need
    file: HubFile

    @property
    def label(self) -> str:
        return f"{self.need.source.label} {self.file.name}"


class Watcher(Protocol):
    """Is told how it goes, from several threads."""

    def begin(self, downloads: Sequence[Download]) -> None: ...

    def start(self, download: Download) -> None: ...

    def advance(self, download: Download, num_bytes: int) -> None: ...

    def finish(self, download: Download) -> None: ...


def look(needs: Sequence[Need], config: WeightsConfig) -> tuple[Looked, ...]:
    """What is there of each, without fetching more than lists of files."""
    return tuple(_look(need, config) for need in needs)


def fetch(
    looked: Sequence[Looked], config: WeightsConfig, watcher: Watcher, num_threads: int = 4
) -> tuple[Looked, ...]:
    """Bring what is missing and look again.

    Raises:
        BundleInvalid: the disk has too little room, said before anything is fetched.
    """
    downloads = _plan(looked)
    failed: Failures = {}
    if downloads:
        cache = find_cache(config.cache_dir)
        _sweep_leftovers([download.need for download in downloads], cache)
        _require_room(cache, sum(d.file.num_bytes for d in downloads if not d.file.is_held))
        failed = _keep_listings([download.need for download in downloads], cache)
        _download(downloads, cache, watcher, num_threads, failed)
    return tuple(_settle(one, config, failed) for one in looked)


def _look(need: Need, config: WeightsConfig) -> Looked:
    files: tuple[HubFile, ...] = ()
    unlisted: BundleInvalid | None = None
    if need.source.repo is not None:
        try:
            files = list_files(need, find_cache(config.cache_dir))
        except BundleInvalid as exc:
            unlisted = exc  # what is in the cache may still be all: a replica would take it
    if lacking := sum(not file.is_cached for file in files):
        problem = BundleInvalid(
            f"{need.label}: {lacking} of {len(files)} files are missing",
            remedy="sm4ll experts fetch",
        )
        return Looked(need, files, problem)
    try:
        _verify(need, config)
    except BundleInvalid as exc:
        return Looked(need, files, unlisted or exc)
    return Looked(need, files)


def _verify(need: Need, config: WeightsConfig) -> None:
    """As a replica that never asks the hub finds it; then what it will miss while it loads.

    Raises:
        BundleInvalid: with the reason.
    """
    offline = config.model_copy(update={"local_files_only": True})
    folder = WeightStore(need.home, offline).find(need.source, need.reading)
    absent = [name for name in need.files if not (folder / name).is_file()]
    absent += _absent_shards(folder)
    if absent:
        more = f" and {len(absent) - 5} more" if len(absent) > 5 else ""
        raise BundleInvalid(
            f"{need.label}: lacks {', '.join(absent[:5])}{more}",
            remedy="check subfolder and file names in the bundle; "
            + (
                "copy the folder again"
                if need.source.path
                else "of that commit no such file is read"
            ),
        )


def _absent_shards(folder: Path) -> list[str]:
    """Weights in several files come with an index that names them all."""
    absent: list[str] = []
    for index in sorted(folder.rglob("*.safetensors.index.json")):
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, LookupError, AttributeError):
            absent.append(f"a readable {index.relative_to(folder)}")
            continue
        beside = index.parent
        # A repository's second copy in half precision is left out, whose index is not.
        if any((beside / shard).is_file() for shard in shards):
            absent += [
                (beside / shard).relative_to(folder).as_posix()
                for shard in sorted(shards)
                if not (beside / shard).is_file()
            ]
    return absent


def _commit(need: Need) -> Commit:
    return need.source.repo, need.source.revision


def _plan(looked: Sequence[Looked]) -> list[Download]:
    """Every missing file once, though several needs may want it; the largest first."""
    wanted: dict[tuple[Commit, str], Download] = {}
    for one in looked:
        for file in one.missing:
            wanted.setdefault((_commit(one.need), file.name), Download(one.need, file))
    return sorted(wanted.values(), key=lambda download: -download.file.num_bytes)


def _sweep_leftovers(needs: Sequence[Need], cache: Path) -> None:
    for need in dict.fromkeys(needs):
        for path in find_leftovers(need, cache, LEFTOVER_AGE_S, time.time()):
            path.unlink(missing_ok=True)


def _require_room(cache: Path, num_bytes: int) -> None:
    place = next(path for path in (cache, *cache.parents) if path.is_dir())
    free = shutil.disk_usage(place).free
    if num_bytes + KEPT_FREE_BYTES > free:
        raise BundleInvalid(
            f"{cache}: {num_bytes / 1e9:.1f} GB are to come, {free / 1e9:.1f} GB are free",
            remedy="enlarge the volume, or delete what nobody uses: hf cache ls, hf cache rm",
        )


def _keep_listings(needs: Sequence[Need], cache: Path) -> Failures:
    """First, so that whoever finds a half of them offline knows that it is a half.

    Returns:
        What failed: a gated repository shows its list to everybody, and its files to few.
    """
    failed: Failures = {}
    for commit, need in {_commit(need): need for need in needs}.items():
        try:
            keep_listing(need, cache)
        except BundleInvalid as exc:
            failed[commit] = exc
    return failed


def _download(
    downloads: Sequence[Download],
    cache: Path,
    watcher: Watcher,
    num_threads: int,
    failed: Failures,
) -> None:
    """Several at once; what fails of one repository ends that one's, not the others'."""
    lock = threading.Lock()

    def bring(download: Download) -> None:
        with lock:
            if _commit(download.need) in failed:
                return
        came_bytes = 0

        def on_bytes(num_bytes: int) -> None:
            nonlocal came_bytes
            came_bytes += num_bytes
            watcher.advance(download, num_bytes)

        watcher.start(download)
        try:
            download_file(download.need, download.file, cache, on_bytes)
        except BundleInvalid as exc:
            with lock:
                failed.setdefault(_commit(download.need), exc)
            return
        on_bytes(download.file.num_bytes - came_bytes)  # what was there under another name
        watcher.finish(download)

    watcher.begin(downloads)
    with ThreadPoolExecutor(num_threads) as pool:
        list(pool.map(bring, downloads))


def _settle(before: Looked, config: WeightsConfig, failed: Failures) -> Looked:
    need = before.need
    if (problem := failed.get(_commit(need))) is not None:
        after = _look(need, config)  # its files may have come all the same
        return after if after.is_ready else Looked(need, after.files, problem)
    if need.source.repo is not None and before.files:
        # As an online replica finds it: leaves the list of files that an offline one is told by
        # whether all are there.
        online = config.model_copy(update={"local_files_only": False})
        try:
            WeightStore(need.home, online).find(need.source, need.reading)
        except BundleInvalid as exc:
            return Looked(need, before.files, exc)
    return _look(need, config)
