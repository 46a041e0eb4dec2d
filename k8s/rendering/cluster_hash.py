"""Which edits of a RayService make KubeRay build another cluster, and which not. Pure.

KubeRay hashes `rayClusterConfig` without what may change in place. A cluster whose hash is another
is replaced, as `upgradeStrategy` says; one whose first worker groups hash as before is given the
new groups behind them. Everything outside of `rayClusterConfig` is taken in place.

Source: ray-operator/controllers/ray/utils/util.go, GenerateHashWithoutReplicasAndWorkersToDelete,
and rayservice_controller.go, isClusterSpecHashEqual (KubeRay v1.7.0).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Document = Mapping[str, Any]

OF_GROUP = ("replicas", "minReplicas", "maxReplicas")
OF_POD = ("tolerations", "schedulingGates")
NAMES = ("groupName", "name", "key", "mountPath", "topologyKey")
"""What tells the elements of a list apart, where all have it."""
ABSENT = "absent"
DEFAULTS: Mapping[str, Any] = {"numOfHosts": 1, "priority": 0, "protocol": "TCP"}
"""Of the CRD's schema, as far as we write something that has them."""


@dataclass(frozen=True, slots=True)
class PodBounds:
    """How many pods a worker group may have."""

    min_pods: int
    max_pods: int


def needs_new_cluster(before: Document, after: Document) -> list[str]:
    """The paths below `spec` that make KubeRay build another cluster; empty: all is in place.

    Args:
        before: the RayService that runs.
        after: the same, edited.
    """
    old, new = _hashed(before), _hashed(after)
    old_groups, new_groups = old.pop("workerGroupSpecs", []), new.pop("workerGroupSpecs", [])
    known = new_groups[: len(old_groups)]  # what is appended is no part of it
    paths = [
        *_differences(old, new, "rayClusterConfig"),
        *_differences(old_groups, known, "rayClusterConfig.workerGroupSpecs"),
    ]
    return list(dict.fromkeys(paths))


def appended_groups(before: Document, after: Document) -> list[str]:
    """Worker groups that a cluster gets in place, behind those that it has."""
    old, new = _groups(before), _groups(after)
    return [group["groupName"] for group in new[len(old) :]]


def changed_bounds(before: Document, after: Document) -> dict[str, PodBounds]:
    """The new bounds of groups that both have, where they differ.

    KubeRay keeps them out of the hash and then has no reason to touch the cluster that runs: they
    reach it with the next cluster only (kuberay#2331, #4568). Whoever wants them now writes them to
    the RayCluster itself, `spec.workerGroupSpecs[].minReplicas` and `maxReplicas`; its `replicas`
    is the autoscaler's.
    """
    old = {group["groupName"]: _bounds(group) for group in _groups(before)}
    new = {group["groupName"]: _bounds(group) for group in _groups(after)}
    return {name: now for name, now in new.items() if name in old and old[name] != now}


def _groups(service: Document) -> Sequence[Document]:
    groups: Sequence[Document] = service["spec"]["rayClusterConfig"].get("workerGroupSpecs", [])
    return groups


def _bounds(group: Document) -> PodBounds:
    return PodBounds(group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1))


def _hashed(service: Document) -> dict[str, Any]:
    """What counts of `rayClusterConfig`."""
    config = dict(service["spec"]["rayClusterConfig"])
    config.pop("upgradeStrategy", None)
    if "headGroupSpec" in config:
        config["headGroupSpec"] = _without_scheduling(config["headGroupSpec"])
    groups = config.get("workerGroupSpecs", [])
    config["workerGroupSpecs"] = [_group_hashed(group) for group in groups]
    present: dict[str, Any] = _present(config)
    return present


def _group_hashed(group: Document) -> Document:
    kept = {name: value for name, value in group.items() if name not in OF_GROUP}
    if "scaleStrategy" in kept:
        strategy = kept["scaleStrategy"]
        kept["scaleStrategy"] = {k: v for k, v in strategy.items() if k != "workersToDelete"}
    return _without_scheduling(kept)


def _without_scheduling(group: Document) -> Document:
    template = group.get("template")
    if template is None or "spec" not in template:
        return group
    spec = {name: value for name, value in template["spec"].items() if name not in OF_POD}
    return {**group, "template": {**template, "spec": spec}}


def _present(value: Any) -> Any:
    """Without what is empty, which Go leaves out, and without what the API server fills in: so may
    what was rendered be held against what it became."""
    if isinstance(value, Mapping):
        found = {name: _present(inner) for name, inner in value.items()}
        return {
            name: inner
            for name, inner in found.items()
            if inner not in (None, {}, [], "") and DEFAULTS.get(name, ABSENT) != inner
        }
    if isinstance(value, list | tuple):
        return [_present(inner) for inner in value]
    return value


def _differences(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in dict.fromkeys((*old, *new)):
            yield from _differences(old.get(name, ABSENT), new.get(name, ABSENT), f"{path}.{name}")
    elif isinstance(old, list) and isinstance(new, list):
        yield from _list_differences(old, new, path)
    elif old != new or type(old) is not type(new):
        yield path


def _list_differences(old: list[Any], new: list[Any], path: str) -> Iterator[str]:
    key = _name_key((*old, *new))
    if key is None:
        if old != new:
            yield path
        return
    was = {item[key]: item for item in old}
    now = {item[key]: item for item in new}
    for name in dict.fromkeys((*was, *now)):
        yield from _differences(was.get(name, ABSENT), now.get(name, ABSENT), f"{path}[{name}]")
    if was.keys() == now.keys() and list(was) != list(now):
        yield f"{path} (order)"


def _name_key(items: Sequence[Any]) -> str | None:
    """What tells them apart on both sides."""
    for key in NAMES:
        if all(isinstance(item, Mapping) and key in item for item in items):
            return key
    return None
