"""The model hub as a prefetch sees it: what a need's files are, which are cached, and one file.

Imports the hub's library inside functions: not every installation has it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2

from deployments.extras import needing_weights
from deployments.needed import Need
from serve.errors import BundleInvalid

OnBytes = Callable[[int], None]
"""Told how many more bytes of a file came; negative when some have to come again."""


@dataclass(frozen=True, slots=True)
class HubFile:
    """One file of a repository at its commit."""

    name: str
    num_bytes: int
    is_cached: bool
    is_held: bool
    """Its content is in the cache, by this commit or by another."""


def find_cache(cache_dir: Path | None) -> Path:
    """Where repositories are kept: what the family says, or the hub library's own place."""
    with needing_weights("a hub repository"):
        from huggingface_hub import constants

    return Path(cache_dir or constants.HF_HUB_CACHE).expanduser().resolve()


def list_files(need: Need, cache: Path) -> tuple[HubFile, ...]:
    """The files that the need's replicas will read, by the rule that they go by.

    A commit never changes, so a listing that is cached is not asked for again.

    Raises:
        BundleInvalid: nothing is known about the commit and the hub does not say.
    """
    with needing_weights("a hub repository"):
        from huggingface_hub import HfApi, get_cached_repo_tree
        from huggingface_hub.errors import CachedRepoTreeNotFoundError
        from huggingface_hub.hf_api import RepoFile
        from huggingface_hub.utils import filter_repo_objects

    repo, revision = _commit(need)
    try:
        tree: list[Any] = get_cached_repo_tree(repo, revision=revision, cache_dir=cache)
    except CachedRepoTreeNotFoundError:
        with mapped_hub_errors(need):
            listed = HfApi().list_repo_tree(repo, recursive=True, revision=revision)
            tree = [entry for entry in listed if isinstance(entry, RepoFile)]
    wanted = filter_repo_objects(
        tree,
        allow_patterns=need.reading.allowed(need.source),
        ignore_patterns=list(need.reading.ignored),
        key=lambda entry: entry.path,
    )
    snapshot = _snapshot(need, cache)
    return tuple(_look_at(entry, snapshot) for entry in wanted)


def _look_at(entry: Any, snapshot: Path) -> HubFile:
    is_cached = (snapshot / entry.path).is_file()
    content = entry.lfs.sha256 if entry.lfs else entry.blob_id
    is_held = is_cached or (snapshot.parents[1] / "blobs" / content).is_file()
    return HubFile(entry.path, entry.size, is_cached, is_held)


def download_file(need: Need, file: HubFile, cache: Path, on_bytes: OnBytes) -> None:
    """Bring one file into the cache, whole or not at all.

    Raises:
        BundleInvalid: the hub, the network or the disk refused.
    """
    with needing_weights("a hub repository"):
        from huggingface_hub import hf_hub_download

    repo, revision = _commit(need)
    with mapped_hub_errors(need):
        hf_hub_download(
            repo,
            file.name,
            revision=revision,
            cache_dir=cache,
            tqdm_class=_progress_class(on_bytes),
        )


def keep_listing(need: Need, cache: Path) -> None:
    """Write the commit's list of files into the cache, as the hub library does before it fetches.

    Raises:
        BundleInvalid: the hub, the network or the disk refused.
    """
    with needing_weights("a hub repository"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
    repo, revision = _commit(need)
    first = f"{need.source.subfolder}/{need.files[0]}" if need.source.subfolder else need.files[0]
    with mapped_hub_errors(need):
        snapshot_download(repo, revision=revision, cache_dir=cache, allow_patterns=[first])


def find_leftovers(need: Need, cache: Path, older_than_s: float, now_s: float) -> list[Path]:
    """Parts of files that a killed download left: their names are random, so nobody goes on
    with them, and nobody writes to one that has not grown for so long."""
    blobs = _snapshot(need, cache).parents[1] / "blobs"
    return [
        path
        for path in sorted(blobs.glob("*.incomplete"))
        if now_s - path.stat().st_mtime > older_than_s
    ]


def _commit(need: Need) -> tuple[str, str]:
    repo, revision = need.source.repo, need.source.revision
    assert repo is not None, "a path is nothing to download"
    assert revision is not None, "ModelSource has no repository without one"
    return repo, revision


def _snapshot(need: Need, cache: Path) -> Path:
    """As the hub library lays its cache out, documented for readers other than itself.

    Source: https://huggingface.co/docs/huggingface_hub/guides/manage-cache
    """
    repo, revision = _commit(need)
    return cache / f"models--{repo.replace('/', '--')}" / "snapshots" / revision


def _progress_class(on_bytes: OnBytes) -> type[Any]:
    """What the hub library tells progress to: it makes one, of a class, for every file."""

    class Told:
        def __init__(self, *_: object, **options: Any):
            self.update(options.get("initial"))

        def __enter__(self) -> "Told":
            return self

        def __exit__(self, *_: object) -> None: ...

        def update(self, num_bytes: float | None = 1) -> None:
            on_bytes(int(num_bytes or 0))

        def _ignore(self, *_: object, **__: object) -> None: ...

        # Two bars would be made without the first: of what came, and of what was unpacked.
        update_transfer = set_transfer_postfix_str = set_postfix_str = _ignore
        refresh = close = _ignore

    return Told


@contextmanager
def mapped_hub_errors(need: Need) -> Iterator[None]:
    """
    Raises:
        BundleInvalid: with what helps against whatever the hub, its client or the disk raised.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError, httpx2.HTTPError) as exc:  # hf_xet's are Runtime
        said = str(exc).strip().splitlines()
        raise BundleInvalid(
            f"{need.label}: {type(exc).__name__}: {said[0] if said else 'no reason given'}",
            remedy=_remedy(exc, need),
        ) from exc


def _remedy(exc: Exception, need: Need) -> str:
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repo, revision = _commit(need)
    account = "and set HF_TOKEN to a token of that account, there is none"
    if get_token():
        account = "with the account whose token HF_TOKEN is"
    if isinstance(exc, GatedRepoError):
        return f"accept the terms at {constants.ENDPOINT}/{repo} {account}"
    if isinstance(exc, RepositoryNotFoundError):
        return f"check the name in the bundle; if it is private, ask for access {account}"
    if isinstance(exc, RevisionNotFoundError):
        return f"{repo} has no commit {revision}: check revision in the bundle"
    if isinstance(exc, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE=1 is for replicas: unset it where weights are fetched"
    if isinstance(exc, HfHubHTTPError) and exc.response.status_code in (401, 403):
        return f"ask for read access to {repo} {account}"
    if isinstance(exc, PermissionError):
        return "let this user (uid 1000 in the image) write the cache, or name another cache_dir"
    return "check the network and HF_ENDPOINT, then run it again: whole files are kept"
