"""Server-side apply, simplified: who owns which path of an object, and what comes of an apply."""

import copy
from dataclasses import dataclass, field
from typing import Any

Manifest = dict[str, Any]
Path = tuple[str, ...]

UNOWNED = frozenset({"apiVersion", "kind"})
UNOWNED_METADATA = frozenset(
    {
        *("name", "namespace", "uid", "generation", "resourceVersion", "managedFields"),
        "creationTimestamp",
    }
)


class FieldConflicts(Exception):
    """(path, manager) that own what would change."""

    def __init__(self, found: list[tuple[str, str]]):
        super().__init__(str(found))
        self.found = found


def is_named_list(value: Any) -> bool:
    """Merged by name, as containers, variables and worker groups are."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and "name" in one for one in value)
        and len({one["name"] for one in value}) == len(value)
    )


def leaves(value: Any, at: Path = ()) -> dict[Path, Any]:
    """Every path with a value of its own."""
    if isinstance(value, dict) and value:
        steps = [(f".{name}", one) for name, one in value.items()]
    elif is_named_list(value):
        steps = [(f'[name="{one["name"]}"]', one) for one in value]
    else:
        return {at: value}
    return {path: leaf for step, one in steps for path, leaf in leaves(one, (*at, step)).items()}


def owned_leaves(manifest: Manifest) -> dict[Path, Any]:
    bare = {name: one for name, one in manifest.items() if name not in UNOWNED and name != "status"}
    metadata = manifest.get("metadata", {})
    bare["metadata"] = {k: v for k, v in metadata.items() if k not in UNOWNED_METADATA}
    if not bare["metadata"]:
        del bare["metadata"]
    return leaves(bare) if bare else {}


@dataclass
class Fields:
    """The paths that each manager owns."""

    by_manager: dict[str, set[Path]] = field(default_factory=dict)

    def own_all(self, manager: str, manifest: Manifest, before: Manifest) -> None:
        """After an update: whatever it changed is the manager's alone."""
        old, new = owned_leaves(before), owned_leaves(manifest)
        changed = {path for path, value in new.items() if old.get(path, ...) != value}
        for who, paths in self.by_manager.items():
            if who != manager:
                paths -= changed | (old.keys() - new.keys())
        self.by_manager.setdefault(manager, set()).update(changed)

    def owners(self, path: Path, but: str) -> list[str]:
        return [who for who, paths in self.by_manager.items() if who != but and path in paths]

    def as_managed_fields(self, api_version: str) -> list[Manifest]:
        told = []
        for who, paths in self.by_manager.items():
            tree: Manifest = {}
            for path in sorted(paths):
                node = tree
                for step in path:
                    is_key = step.startswith("[")
                    name = 'k:{"name":' + step[6:-1] + "}" if is_key else "f:" + step[1:]
                    node = node.setdefault(name, {})
            told.append(
                {
                    "manager": who,
                    "operation": "Apply" if who != "kubectl" else "Update",
                    "apiVersion": api_version,
                    "time": "2026-11-26T00:00:00Z",
                    "fieldsType": "FieldsV1",
                    "fieldsV1": tree,
                }
            )
        return told


def merge_applied(
    live: Manifest, fields: Fields, applied: Manifest, manager: str, force: bool
) -> Manifest:
    """The object after the apply; `fields` is changed along.

    Raises:
        FieldConflicts: and not forced.
    """
    wanted, here = owned_leaves(applied), owned_leaves(live)
    changed = {path for path, value in wanted.items() if here.get(path, ...) != value}
    found = [
        ("".join(path), who) for path in sorted(changed) for who in fields.owners(path, manager)
    ]
    if found and not force:
        raise FieldConflicts(found)
    before = fields.by_manager.get(manager, set())
    merged = copy.deepcopy(live)
    for path in before - wanted.keys():
        if not fields.owners(path, manager):
            _remove(merged, path)
    for who, paths in fields.by_manager.items():
        if who != manager:
            paths -= changed
    fields.by_manager[manager] = set(wanted)
    result = _merge(merged, applied)
    result.setdefault("metadata", {})
    return result


def _merge(here: Any, applied: Any) -> Any:
    if isinstance(here, dict) and isinstance(applied, dict):
        both = {
            name: _merge(here[name], one) if name in here else one for name, one in applied.items()
        }
        return copy.deepcopy({**here, **both})
    if is_named_list(here) and is_named_list(applied):
        mine = {one["name"]: one for one in here}
        new = [_merge(mine.get(one["name"], {}), one) for one in applied]
        names = {one["name"] for one in applied}
        return [*new, *(one for one in here if one["name"] not in names)]
    return copy.deepcopy(applied)


def _remove(value: Any, path: Path) -> None:
    """With what becomes empty by it."""
    parents = []
    for step in path[:-1]:
        parents.append((value, step))
        value = _step(value, step)
        if value is None:
            return
    _pop(value, path[-1])
    for parent, step in reversed(parents):
        child = _step(parent, step)
        is_only_name = isinstance(child, dict) and set(child) <= {"name"} and step[0] == "["
        if child in ({}, []) or is_only_name:
            _pop(parent, step)


def _step(value: Any, step: str) -> Any:
    if step.startswith("["):
        return next((one for one in value if f'[name="{one["name"]}"]' == step), None)
    return value.get(step[1:]) if isinstance(value, dict) else None


def _pop(value: Any, step: str) -> None:
    if step.startswith("["):
        value[:] = [one for one in value if f'[name="{one["name"]}"]' != step]
    elif isinstance(value, dict):
        value.pop(step[1:], None)


def fill_defaults(one: Manifest) -> Manifest:
    """A few of the fields that a server fills in, so that a difference must look past them."""
    spec = one.get("spec")
    if not isinstance(spec, dict):
        return one
    kind = one["kind"]
    if kind == "Service":
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        if spec["type"] == "ClusterIP":
            spec.setdefault("clusterIP", "10.96.0.10")
        for port in spec.get("ports", []):
            port.setdefault("protocol", "TCP")
    if kind in ("Deployment", "StatefulSet"):
        spec.setdefault("revisionHistoryLimit", 10)
    if kind == "Job":
        spec.setdefault("completions", 1)
        spec.setdefault("suspend", False)
    template = spec.get("template")
    if isinstance(template, dict) and isinstance(template.get("spec"), dict):
        template["spec"].setdefault("schedulerName", "default-scheduler")
        for container in template["spec"].get("containers", []):
            container.setdefault("terminationMessagePath", "/dev/termination-log")
    return one
