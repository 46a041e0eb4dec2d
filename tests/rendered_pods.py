"""The Ray pods of a rendered overlay as processes of this machine can be started: what the operator
and the kubelet make of a RayService, without images, volumes and secrets."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from k8s.state.quantity import parse_quantity

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pod:
    """One Ray node."""

    name: str
    num_cpus: int
    labels: Mapping[str, str]
    """Of the Ray node."""
    environment: Mapping[str, str]
    """What is written out; what comes from secrets or fields is absent."""


class Rendered:
    """The generated files of one overlay."""

    def __init__(self, texts: Mapping[str, str]):
        self._documents = [
            document
            for name, text in texts.items()
            if name.endswith(".yaml")
            for document in yaml.safe_load_all(text)
            if document
        ]
        (self._service,) = (one for one in self._documents if one["kind"] == "RayService")

    def read_serve_config(self, folder: Path) -> dict[str, Any]:
        """
        Args:
            folder: below which `write_files` has put what pods have mounted.
        """
        config: dict[str, Any] = yaml.safe_load(self._service["spec"]["serveConfigV2"])
        for application in config["applications"]:
            application["args"] = {
                name: self._moved(value, folder) if isinstance(value, str) else value
                for name, value in application["args"].items()
            }
        return config

    def read_head(self, folder: Path) -> Pod:
        return self._read_pod("head", self._cluster["headGroupSpec"], folder)

    def read_workers(self, folder: Path) -> Iterator[Pod]:
        """As many of each pool as there are before anybody asks for more."""
        for group in self._cluster["workerGroupSpecs"]:
            for number in range(group.get("minReplicas", group.get("replicas", 0))):
                yield self._read_pod(f"{group['groupName']}-{number}", group, folder)

    def write_files(self, folder: Path) -> None:
        """Every file that a ConfigMap brings into the pods, below the folder; also again."""
        for volume, mount_path in self._mounts():
            mounted = folder / mount_path.strip("/")
            mounted.mkdir(parents=True, exist_ok=True)
            for key, text in self._data_of(volume["configMap"]["name"]).items():
                (mounted / key).write_text(text)

    @property
    def _cluster(self) -> Document:
        cluster: Document = self._service["spec"]["rayClusterConfig"]
        return cluster

    def _data_of(self, name: str) -> Mapping[str, str]:
        maps = [one for one in self._documents if one["kind"] == "ConfigMap"]
        (data,) = (one["data"] for one in maps if one["metadata"]["name"] == name)
        found: Mapping[str, str] = data
        return found

    def _mounts(self) -> Iterator[tuple[Document, str]]:
        spec = self._cluster["headGroupSpec"]["template"]["spec"]
        volumes = {one["name"]: one for one in spec.get("volumes", ()) if "configMap" in one}
        for mount in spec["containers"][0].get("volumeMounts", ()):
            if mount["name"] in volumes:
                yield volumes[mount["name"]], mount["mountPath"]

    def _read_pod(self, name: str, group: Document, folder: Path) -> Pod:
        container = group["template"]["spec"]["containers"][0]
        written = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        return Pod(
            name,
            _count_cpus(group, container),
            group.get("labels", {}),
            {key: self._moved(value, folder) for key, value in written.items()},
        )

    def _moved(self, value: str, folder: Path) -> str:
        """A path below a mounted folder, where its files lie here."""
        is_below = any(value.startswith(f"{mount_path}/") for _, mount_path in self._mounts())
        return str(folder / value.strip("/")) if is_below else value


def _count_cpus(group: Document, container: Document) -> int:
    """What the operator starts the node with (Source: KubeRay v1.7.0, ray-operator/controllers/ray/
    common/pod.go `updateRayStartParamsResources`: the limit, rounded up, or the request)."""
    told = group["rayStartParams"].get("num-cpus")
    if told is not None:
        return int(told)
    resources = container["resources"]
    amount = resources.get("limits", {}).get("cpu") or resources["requests"]["cpu"]
    return math.ceil(parse_quantity(amount))
