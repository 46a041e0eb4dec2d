"""What was applied, kept in the cluster itself: one Secret a revision, the last ten.

A Secret and not a ConfigMap, because an overlay may bring Secrets, and because who may not read
those must not read them here. Written before the first change (`pending`) and marked at the end,
so that a crash in between is seen.
"""

import base64
import datetime as dt
import getpass
import gzip
import json
import socket
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from k8s.control.api import ControlPlane
from k8s.control.connection import Manifest
from k8s.control.objects import digest, image_of
from serve.errors import ConfigError, NotFound

TYPE = "sm4ll.dev/revision"
LABEL = "sm4ll.dev/revision"
NOTES = "sm4ll.dev/notes"
PART_OF = {"app.kubernetes.io/part-of": "sm4ll"}
NUM_KEPT = 10
# Kubernetes takes 1 MiB of a Secret's data, and etcd 1.5 MiB of an object, which is base64 there.
# Source: https://kubernetes.io/docs/concepts/configuration/secret/#restriction-data-size
PART_BYTES = 700 * 1024
MAX_PARTS = 8
State = Literal["pending", "done", "failed"]


@dataclass(frozen=True, slots=True)
class Revision:
    """One apply; the manifests are read apart from it."""

    number: int
    state: State
    author: str
    created: str
    overlay: str
    image: str
    digest: str
    """Of the manifests: two applies of the same are the same."""
    num_objects: int
    git: str = ""
    is_dirty: bool = False
    rolled_back_to: int | None = None
    num_parts: int = 1

    @property
    def git_words(self) -> str:
        if not self.git:
            return ""
        return f"{self.git[:10]}{' + uncommitted changes' if self.is_dirty else ''}"


def begin_revision(
    manifests: Sequence[Manifest], overlay: str, folder: Path | None, number: int
) -> Revision:
    """As it is before anything is changed."""
    git, is_dirty = read_git(folder) if folder else ("", False)
    return Revision(
        number=number,
        state="pending",
        author=whoami(),
        created=dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        overlay=overlay,
        image=image_of(manifests),
        digest=digest(list(manifests)),
        num_objects=len(manifests),
        git=git,
        is_dirty=is_dirty,
    )


def whoami() -> str:
    """The person and the machine, as far as the machine knows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        user = "somebody"
    return f"{user}@{socket.gethostname()}"


def read_git(folder: Path) -> tuple[str, bool]:
    """The commit that the folder is of, and whether the folder has changed since."""
    try:
        head = _git(folder, "rev-parse", "HEAD")
        return head, bool(head and _git(folder, "status", "--porcelain", "--", "."))
    except (OSError, subprocess.TimeoutExpired):
        return "", False


def _git(folder: Path, *words: str) -> str:
    told = subprocess.run(
        ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=30
    )
    return told.stdout.strip() if told.returncode == 0 else ""


class Revisions:
    """The revisions of one namespace."""

    def __init__(self, api: ControlPlane, namespace: str):
        self._api = api
        self._namespace = namespace

    def all(self) -> list[Revision]:
        """The newest first."""
        found = [_read(one) for one in self._secrets(LABEL) if _part_of(one) == 0]
        return sorted(found, key=lambda one: one.number, reverse=True)

    def find(self, number: int) -> Revision:
        """
        Raises:
            NotFound: it is not kept any more, or never was.
        """
        revisions = self.all()
        for one in revisions:
            if one.number == number:
                return one
        known = ", ".join(str(one.number) for one in revisions) or "none"
        raise NotFound(f"There is no revision {number} in {self._namespace}; there is: {known}")

    def manifests(self, number: int) -> list[Manifest]:
        """
        Raises:
            ConfigError: a part of it is gone.
        """
        parts = sorted(self._secrets(f"{LABEL}={number}"), key=_part_of)
        # What a crash left behind of a longer one that had this number is not of it.
        parts = parts[: _read(parts[0]).num_parts] if parts and _part_of(parts[0]) == 0 else []
        packed = b"".join(base64.b64decode(one["data"]["manifests"]) for one in parts)
        try:
            manifests: list[Manifest] = json.loads(gzip.decompress(packed))
        except (EOFError, ValueError, OSError, zlib.error) as exc:
            raise ConfigError(
                f"Revision {number} cannot be read: its Secrets sm4ll-revision-{number}* in "
                f"{self._namespace} are damaged or incomplete ({exc})"
            ) from exc
        return manifests

    def write(self, revision: Revision, manifests: Sequence[Manifest]) -> Revision:
        """The manifests, and the notes last: a revision without notes does not exist.

        Returns:
            The revision, which knows its parts now.

        Raises:
            ConfigError: they are too many, even compressed and in parts.
        """
        # The time in gzip's head would make the same manifests different bytes.
        packed = gzip.compress(json.dumps(list(manifests)).encode(), mtime=0)
        parts = [packed[at : at + PART_BYTES] for at in range(0, len(packed), PART_BYTES)]
        if len(parts) > MAX_PARTS:
            raise ConfigError(
                f"The manifests are {len(packed) / 2**20:.1f} MiB, compressed: too large to be "
                "kept in the cluster. Take the dashboards out of the overlay, and apply them apart."
            )
        revision = replace(revision, num_parts=len(parts))
        for index in reversed(range(len(parts))):
            secret = _secret(revision, index)
            secret["data"] = {"manifests": base64.b64encode(parts[index]).decode()}
            self._api.apply(secret, self._namespace, force=True)
        return revision

    def mark(self, revision: Revision, state: State) -> Revision:
        """How it ended."""
        marked = replace(revision, state=state)
        secret = self._api.get("v1", "Secret", _name(revision.number, 0), self._namespace)
        if secret is not None:
            made = _secret(marked, 0)
            self._api.apply({**made, "data": secret["data"]}, self._namespace, force=True)
        return marked

    def forget_old(self) -> None:
        """Keep the last ten, and of those before them the last that was done."""
        revisions = self.all()
        kept = {one.number for one in revisions[:NUM_KEPT]}
        done = [one.number for one in revisions if one.state == "done"]
        kept |= set(done[:2])  # what runs, and what `rollback` goes to
        for one in revisions:
            if one.number not in kept:
                self.delete(one)

    def delete(self, revision: Revision) -> None:
        """The notes first: what is half deleted is no revision."""
        for index in range(revision.num_parts):
            self._api.delete("v1", "Secret", _name(revision.number, index), self._namespace)

    def next_number(self) -> int:
        return max((one.number for one in self.all()), default=0) + 1

    def _secrets(self, labels: str) -> Iterator[Manifest]:
        listing = self._api.list("v1", "Secret", self._namespace, labels)
        yield from (one for one in listing.items if one.get("type") == TYPE)


def _name(number: int, part: int) -> str:
    return f"sm4ll-revision-{number}" if part == 0 else f"sm4ll-revision-{number}-part-{part + 1}"


def _part_of(secret: Manifest) -> int:
    name = secret["metadata"]["name"]
    _, _, part = name.partition("-part-")
    return int(part) - 1 if part else 0


def _secret(revision: Revision, part: int) -> Manifest:
    notes = {name: getattr(revision, name) for name in Revision.__dataclass_fields__}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": TYPE,
        "metadata": {
            "name": _name(revision.number, part),
            "labels": {**PART_OF, LABEL: str(revision.number)},
            "annotations": {NOTES: json.dumps(notes)} if part == 0 else {},
        },
    }


def _read(secret: Manifest) -> Revision:
    return Revision(**json.loads(secret["metadata"]["annotations"][NOTES]))


def previous_done(revisions: Sequence[Revision]) -> Revision | None:
    """What `rollback` goes back to: the last that was done, but not the one that runs.

    Where the newest did not end well, that is the last good one; its twin, applied again, is none.
    """
    done = [one for one in revisions if one.state == "done"]
    if revisions and revisions[0].state != "done":
        return done[0] if done else None
    return next((one for one in done[1:] if one.digest != done[0].digest), None)
