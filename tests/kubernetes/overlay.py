"""The overlay of the end-to-end test: the rendered cluster of a small family, with what the
environment says instead of images, commands, probes and resources."""

import base64
import copy
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from k8s.control.connection import Manifest
from k8s.control.kustomize import build
from serve.settings import CONFIGS_DIR
from serve.tenancy.keys import mint_key

FAMILY = Path(__file__).parent / "e2e/family.yaml"
MOUNTED = "/etc/sm4ll"
Sm4ll = Callable[..., str]
"""The command line: arguments in, standard output back; fails where the command does."""
GENERATION = "SM4LL_TEST_GENERATION"
"""A variable of every container: another value makes another cluster."""
REDIS = "sm4ll-redis"
AUTOSCALER_FIELDS = frozenset({"imagePullPolicy", "resources", "securityContext", "volumeMounts"})
"""Source: ray-operator/apis/ray/v1/raycluster_types.go, AutoscalerOptions (KubeRay v1.7.0)."""


class E2eSettings(BaseSettings):
    """What the cluster of the kubeconfig needs; the `local` overlay as it is where nothing is said.

    Where pods are processes of one machine, for example:

        SM4LL_E2E_BIN=$PWD/.venv/bin SM4LL_E2E_MOUNTED=1
        SM4LL_E2E_DATABASE_URL=sqlite:////tmp/e2e/sm4ll.db SM4LL_E2E_BLOBS_URL=/tmp/e2e/blobs
        SM4LL_E2E_CONTAINER='{"securityContext": null, "lifecycle": null, "readinessProbe": null}'
        SM4LL_E2E_POD='{"securityContext": null}'
        SM4LL_E2E_START_PARAMS='{"temp-dir": "/tmp/$RAY_CLOUD_INSTANCE_ID"}'
    """

    model_config = SettingsConfigDict(env_prefix="SM4LL_E2E_", use_attribute_docstrings=True)

    namespace: str = "sm4ll-e2e"
    """Must not exist: it is deleted afterwards."""
    image: str | None = None
    new_image: str | None = None
    """What the upgrade brings; a variable's other value when absent."""
    database_url: SecretStr | None = None
    """Of an empty database; with it, none of the small stores is deployed."""
    blobs_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    """With the two above; each router counts for itself when absent."""
    bin: Path | None = None
    """Where `sm4ll`, `ray` and `python` lie when pods are processes of this machine: first in their
    PATH, and before commands that begin with `sm4ll`. Their home is ours, too."""
    mounted: bool = False
    """Whether pods read the documents of the family from this checkout, not from a ConfigMap."""
    env: Mapping[str, str] = {}
    """More variables of every container, as JSON."""
    container: Mapping[str, Any] = {}
    """Fields of every container instead of its own, as JSON: `{"resources": {}}`; null takes one
    away, as in `{"livenessProbe": null, "readinessProbe": null}`."""
    pod: Mapping[str, Any] = {}
    """The same for the `spec` of every pod."""
    start_params: Mapping[str, str] = {}
    """More of `rayStartParams`, for every group. Pods that share a /tmp need a `temp-dir` each, a
    short one: Ray's sockets lie in it, and their names have 107 characters at most."""
    patches: Path | None = None
    """A YAML list of kustomize patches that come last."""
    url: str | None = None
    """Where the serve service is reached; directly at its pods when absent."""
    timeout: str = "15m"
    """For each thing that is waited for."""

    @model_validator(mode="after")
    def _stores_come_together(self) -> Self:
        if (self.database_url is None) != (self.blobs_url is None):
            raise ValueError("give SM4LL_E2E_DATABASE_URL and SM4LL_E2E_BLOBS_URL, or neither")
        return self


class E2eOverlay:
    """A folder that `kubectl kustomize` builds; written again for every edit."""

    def __init__(self, folder: Path, sm4ll: Sm4ll, settings: E2eSettings):
        self._folder = folder
        self._sm4ll = sm4ll
        self._settings = settings
        self._token = mint_key().token
        self._family = folder / "family/family.yaml"
        shutil.copytree(FAMILY.parent, self._family.parent)
        for name in ("tenants.yaml", "experiments.yaml"):  # as they lie beside it in a pod
            shutil.copyfile(CONFIGS_DIR / name, self._family.parent / name)

    @property
    def path(self) -> Path:
        return self._folder / "k8s/overlays/e2e"

    def write(self, *, generation: int = 1, max_replicas: int = 1) -> list[Manifest]:
        """
        Args:
            generation: Of the cluster: another one needs new pods.
            max_replicas: Of `eye@1`, which changes in the running cluster.
        """
        family = yaml.safe_load(FAMILY.read_text())
        family["experts"][0]["autoscaling"]["max_replicas"] = max_replicas
        self._family.write_text(yaml.safe_dump(family))
        where = ("--family", str(self._family), "--output", str(self._folder / "k8s"))
        self._sm4ll("k8s", "render", "--overlay", "local", *where)
        self.path.mkdir(exist_ok=True)
        self._write_kustomization([])
        self._write_kustomization(list(self._patches(build(self.path), generation)))
        return build(self.path)

    def _write_kustomization(self, patches: list[Mapping[str, Any]]) -> None:
        settings = self._settings
        written: dict[str, Any] = {"namespace": settings.namespace, "resources": ["../local"]}
        if settings.database_url is not None:
            written |= self._without_stores()
        if settings.patches is not None and patches:
            patches += yaml.safe_load(settings.patches.read_text())
        (self.path / "kustomization.yaml").write_text(
            yaml.safe_dump({**written, "patches": patches})
        )

    def _without_stores(self) -> dict[str, Any]:
        assert self._settings.database_url is not None
        assert self._settings.blobs_url is not None
        secrets = {
            "sm4ll-database": {"url": self._settings.database_url.get_secret_value()},
            "sm4ll-blobs": {"url": self._settings.blobs_url.get_secret_value()},
            "sm4ll-admin": {"token": self._token},
        }
        if self._settings.redis_url is not None:
            secrets[REDIS] = {"url": self._settings.redis_url.get_secret_value()}
        return {
            "resources": ["../../base", "../local/rendered"],
            "components": ["../../components/image"],
            "labels": [{"pairs": {"app.kubernetes.io/part-of": "sm4ll"}}],
            "generatorOptions": {"disableNameSuffixHash": True},
            "secretGenerator": [
                {"name": name, "literals": [f"{key}={value}" for key, value in told.items()]}
                for name, told in secrets.items()
            ],
        }

    def _patches(self, manifests: list[Manifest], generation: int) -> Iterator[Mapping[str, Any]]:
        for manifest in manifests:
            operations: list[Mapping[str, Any]] = [
                {"op": "replace", "path": f"{path}/spec", "value": self._pod(spec, generation)}
                for path, spec in list_pods(manifest)
            ]
            if manifest["kind"] == "RayService":
                operations += self._service_operations(manifest, generation)
            if operations:
                named = {"kind": manifest["kind"], "name": manifest["metadata"]["name"]}
                yield {"target": named, "patch": yaml.safe_dump(operations)}
        # Whose kinds a bare cluster does not know.
        yield {
            "target": {"group": "monitoring.coreos.com"},
            "patch": "$patch: delete\nkind: any\nmetadata: {name: any}\n",
        }

    def _service_operations(self, service: Manifest, generation: int) -> list[Mapping[str, Any]]:
        spec = service["spec"]
        operations: list[Mapping[str, Any]] = []
        if self._settings.mounted:
            moved = spec["serveConfigV2"].replace(MOUNTED, str(self._family.parent))
            operations.append({"op": "replace", "path": "/spec/serveConfigV2", "value": moved})
        cluster = spec["rayClusterConfig"]
        # A container that the operator makes from these.
        beside = self._container(cluster["autoscalerOptions"], generation, AUTOSCALER_FIELDS)
        path = "/spec/rayClusterConfig/autoscalerOptions"
        operations.append({"op": "replace", "path": path, "value": beside})
        groups = {"headGroupSpec": cluster["headGroupSpec"]}
        groups |= {f"workerGroupSpecs/{i}": g for i, g in enumerate(cluster["workerGroupSpecs"])}
        for name, group in groups.items():
            params = {**group["rayStartParams"], **self._settings.start_params}
            path = f"/spec/rayClusterConfig/{name}/rayStartParams"
            operations.append({"op": "replace", "path": path, "value": params})
        return operations

    def _pod(self, spec: Manifest, generation: int) -> Manifest:
        made = _without_nulls({**copy.deepcopy(spec), **self._settings.pod})
        for kind in {"containers", "initContainers"} & made.keys():
            made[kind] = [self._container(one, generation) for one in made[kind]]
        return made

    def _container(
        self, container: Manifest, generation: int, fields: frozenset[str] | None = None
    ) -> Manifest:
        """
        Args:
            fields: That it may have; any where None.
        """
        settings = self._settings
        told = {
            name: value
            for name, value in settings.container.items()
            if fields is None or name in fields
        }
        made = _without_nulls({**container, **told})
        image = (settings.new_image if generation > 1 else None) or settings.image
        if image is not None:
            made["image"] = image
        made["env"] = list(self._env(made.get("env", ()), generation))
        if settings.bin is not None and made.get("command", [""])[0] == "sm4ll":
            made["command"] = [str(settings.bin / "sm4ll"), *made["command"][1:]]
        return made

    def _env(self, env: Iterable[Manifest], generation: int) -> Iterator[Manifest]:
        settings = self._settings
        told = {GENERATION: str(generation)}
        gone = set()
        if settings.bin is not None:
            told |= {"PATH": f"{settings.bin}:/usr/local/bin:/usr/bin:/bin"}
            told |= {"HOME": str(Path.home())}
            gone.add("SM4LL_LOG_PIPE")  # the first process there is not the container's
        if settings.database_url is not None and settings.redis_url is None:
            gone.add("SM4LL_REDIS_URL")
        told |= settings.env
        for variable in env:
            if variable["name"] not in told.keys() | gone:
                yield self._moved(variable)
        for name, value in told.items():
            yield {"name": name, "value": value}

    def _moved(self, variable: Manifest) -> Manifest:
        if not self._settings.mounted or "value" not in variable:
            return variable
        value = variable["value"].replace(MOUNTED, str(self._family.parent))
        return {**variable, "value": value}


def list_pods(value: Any, path: str = "") -> Iterator[tuple[str, Manifest]]:
    """Every pod template below the value, as JSON pointer and `spec`."""
    if isinstance(value, list):
        for i, one in enumerate(value):
            yield from list_pods(one, f"{path}/{i}")
    elif isinstance(value, dict):
        for name, one in value.items():
            if name == "template" and "containers" in one.get("spec", {}):
                yield f"{path}/template", one["spec"]
            else:
                yield from list_pods(one, f"{path}/{name}")


def read_token(manifests: list[Manifest]) -> str:
    """The first administrator's."""
    (secret,) = (
        one
        for one in manifests
        if one["kind"] == "Secret" and one["metadata"]["name"] == "sm4ll-admin"
    )
    return base64.b64decode(secret["data"]["token"]).decode()


def _without_nulls(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
