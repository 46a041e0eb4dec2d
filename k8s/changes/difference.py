"""What differs between two versions of an object, field by field, as a person says it; pure."""

import hashlib
import hmac
import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import unified_diff
from typing import Any

import yaml

from k8s.control.connection import Manifest

# The server's own notes, and other tools'; the last holds whole Secrets.
SERVERS_METADATA = frozenset(
    {"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink"}
)
KUBECTLS_COPY = "kubectl.kubernetes.io/last-applied-configuration"
# What tells the items of a list apart, the first that all of them have.
IDENTITIES = (
    *("name", "groupName", "mountPath", "containerPort", "port", "key"),
    *("tenant", "version", "alert", "record"),
)
MAX_WORDS = 100
# A log of CI must not let anybody try passwords until a digest is the same.
_ONE_RUNS_KEY = secrets.token_bytes(32)


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class Difference:
    """One field with what it was and what it becomes; ABSENT where it is not there."""

    path: tuple[str, ...]
    before: Any
    after: Any

    @property
    def where(self) -> str:
        return join_path(self.path)

    @property
    def is_text(self) -> bool:
        """Prose, queries, JSON of dashboards: shown line by line."""
        both = (self.before, self.after)
        return all(isinstance(one, str) for one in both) and any("\n" in one for one in both)

    def lines(self, around: int = 1) -> list[str]:
        """A text's changed lines, each with `-`, `+` or ` ` in front."""
        made = unified_diff(
            self.before.splitlines(), self.after.splitlines(), n=around, lineterm=""
        )
        return [line for line in list(made)[2:] if not line.startswith("@@")]


def join_path(path: Sequence[str]) -> str:
    """Fields by dots; an item of a list in brackets."""
    joined = ""
    for step in path:
        joined += step if step.startswith("[") or not joined else f".{step}"
    return joined


def bare(manifest: Manifest) -> Manifest:
    """What somebody wants of an object: without status and without what servers note in it."""
    kept = {name: value for name, value in manifest.items() if name != "status"}
    metadata = {k: v for k, v in manifest["metadata"].items() if k not in SERVERS_METADATA}
    if KUBECTLS_COPY in (metadata.get("annotations") or {}):
        annotations = {k: v for k, v in metadata["annotations"].items() if k != KUBECTLS_COPY}
        metadata["annotations"] = annotations
    return {**kept, "metadata": metadata}


def veiled(manifest: Manifest) -> Manifest:
    """A Secret whose values are digests: enough to see that one changes, and no more."""
    if manifest["kind"] != "Secret":
        return manifest
    made = dict(manifest)
    for part in ("data", "stringData"):
        if manifest.get(part):
            made[part] = {name: _veil(value) for name, value in manifest[part].items()}
    return made


def _veil(value: Any) -> str:
    digest = hmac.new(_ONE_RUNS_KEY, str(value).encode(), hashlib.sha256).hexdigest()
    return f"hidden:{digest[:12]}"


def compare_objects(before: Manifest, after: Manifest) -> list[Difference]:
    """Of one object as it is and as it would be, without what is the server's own."""
    return list(compare(veiled(bare(before)), veiled(bare(after))))


def compare(before: Any, after: Any, path: tuple[str, ...] = ()) -> Iterator[Difference]:
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for name in dict.fromkeys([*before, *after]):
            old, new = before.get(name, ABSENT), after.get(name, ABSENT)
            yield from compare(old, new, (*path, str(name)))
    elif isinstance(before, list) and isinstance(after, list):
        yield from _compare_lists(before, after, path)
    elif isinstance(before, str) and isinstance(after, str) and _is_document(path):
        old, new = _parse(before), _parse(after)
        if old is None or new is None:
            yield Difference(path, before, after)
        else:  # comments and layout are no change
            yield from compare(old, new, path)
    else:
        yield Difference(path, before, after)


def _compare_lists(
    before: list[Any], after: list[Any], path: tuple[str, ...]
) -> Iterator[Difference]:
    identity = find_identity([before, after])
    if identity is not None:
        old = {str(one[identity]): one for one in before}
        new = {str(one[identity]): one for one in after}
        for name in dict.fromkeys([*old, *new]):
            yield from compare(old.get(name, ABSENT), new.get(name, ABSENT), (*path, f"[{name}]"))
    elif len(before) == len(after) and all(isinstance(one, dict) for one in (*before, *after)):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from compare(one, other, (*path, f"[{index}]"))
    elif before != after:
        yield Difference(path, before, after)


def find_identity(lists: Sequence[list[Any]]) -> str | None:
    """The field by which the items of all of the lists are told apart."""
    for name in IDENTITIES:
        if all(_tells_apart(name, items) for items in lists):
            return name
    return None


def _tells_apart(name: str, items: list[Any]) -> bool:
    if not items or not all(isinstance(one, dict) and name in one for one in items):
        return False
    return len({str(one[name]) for one in items}) == len(items)


def _is_document(path: tuple[str, ...]) -> bool:
    return bool(path) and (path[-1] == "serveConfigV2" or path[-1].endswith((".yaml", ".yml")))


def _parse(text: str) -> Any:
    try:
        parsed = yaml.load(text, yaml.CSafeLoader)
    except yaml.YAMLError:
        return None
    return parsed if isinstance(parsed, dict | list) else None


def in_words(value: Any) -> str:
    """A value in one line."""
    if value is ABSENT:
        return "nothing"
    if isinstance(value, str):
        text = (
            value if value and value == value.strip() and "\n" not in value else json.dumps(value)
        )
    elif isinstance(value, dict | list):
        text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=10**6).strip()
    else:
        text = json.dumps(value, default=str)
    return text if len(text) <= MAX_WORDS else f"{text[: MAX_WORDS - 1]}…"
