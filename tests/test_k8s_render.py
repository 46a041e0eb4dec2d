"""What `sm4ll k8s render` writes: what lies in the repository, safe, and enough by itself."""

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from k8s.render import Rendered, render_overlay
from k8s.rendering.ray_service import NOTES, build_ray_service
from k8s.rendering.serve_config import build_serve_config
from k8s.rendering.shape import OVERLAYS, RAY_VERSION
from k8s.rendering.shared_memory import GIB
from serve.errors import ConfigError
from serve.ray_flags import flags_for
from serve.revision import family_revision
from serve.settings import CONFIGS_DIR, TRACING_FLAGS
from tests.crd_schema import apply_defaults, find_problems, load_schema
from tests.kubernetes_families import (
    MODEL,
    SHAPES,
    files_of,
    plan,
    production,
    serve_config_of,
    write_gpus,
    write_measured,
    write_yaml,
)
from tests.measured_family import L4, write_bundle

ROOT = CONFIGS_DIR.parent
CRD = ROOT.parent / "shared/kuberay/ray.io_rayservices.yaml"
SHIPPED = CONFIGS_DIR / "family.yaml"
KINDS = (*OVERLAYS, "gpu")
GPU_IMAGE = "sm4ll-serve-gpu"
Document = dict[str, Any]


@pytest.fixture(scope="module")
def rendered() -> Mapping[str, Rendered]:
    return {overlay: render_overlay(overlay, SHAPES, files_of(SHIPPED)) for overlay in OVERLAYS}


@pytest.fixture(scope="module")
def services(
    rendered: Mapping[str, Rendered], tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, Document]:
    """Of both overlays, and one with weights on GPUs."""
    found = {
        name: yaml.load(one.files["rayservice.yaml"], yaml.CSafeLoader)
        for name, one in rendered.items()
    }
    return {**found, "gpu": on_gpus(tmp_path_factory.mktemp("gpu"))}


def on_gpus(folder: Path, **changes: Any) -> Document:
    """A light and a heavy version on L4s, as production but for the changes."""
    for version, gib in (("eye@1", 5.0), ("top@1", 15.0)):
        write_measured(folder, version, {L4: gib})
    experts = [{"version": version} for version in ("eye@1", "top@1")]
    family = write_yaml(folder / "family.yaml", {"experts": experts})
    shape = production(**changes)
    cluster = plan(family, write_gpus(folder, [("l4", 4, L4, 1)]), shape)
    return build_ray_service(cluster, shape, build_serve_config(cluster, shape, "cafe"))


def config_of(service: Document) -> Document:
    config: Document = service["spec"]["rayClusterConfig"]
    return config


def groups_of(service: Document) -> dict[str, Document]:
    return {group["groupName"]: group for group in config_of(service)["workerGroupSpecs"]}


def pods_of(service: Document) -> Iterator[Document]:
    """The specs of every kind of pod, the head's first."""
    config = config_of(service)
    for group in (config["headGroupSpec"], *config["workerGroupSpecs"]):
        yield group["template"]["spec"]


def worker(service: Document, group: str) -> Document:
    container: Document = groups_of(service)[group]["template"]["spec"]["containers"][0]
    return container


def env_of(container: Document) -> dict[str, Any]:
    return {one["name"]: one.get("value", one.get("valueFrom")) for one in container["env"]}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_lies_in_the_repository_is_what_the_shipped_configuration_gives(
    overlay: str, rendered: Mapping[str, Rendered]
) -> None:
    folder = ROOT / "k8s/overlays" / overlay / "rendered"
    found = {path.name: path.read_text() for path in folder.iterdir()}
    assert found == rendered[overlay].files, "`sm4ll k8s render` again"


def test_the_same_is_rendered_twice(rendered: Mapping[str, Rendered]) -> None:
    again = render_overlay("production", SHAPES, files_of(SHIPPED))
    assert again.files == rendered["production"].files


def test_what_surprises_is_said_beside_it(rendered: Mapping[str, Rendered]) -> None:
    lines = rendered["production"].files["rayservice.yaml"].splitlines()
    for start, note in NOTES.items():
        last = f"# {note.splitlines()[-1]}"
        (at,) = (at for at, line in enumerate(lines) if line.strip() == last)
        assert lines[at + 1].lstrip(" -").startswith(start)


@pytest.mark.parametrize("kind", KINDS)
def test_the_api_server_takes_the_service_and_drops_nothing_of_it(
    kind: str, services: Mapping[str, Document]
) -> None:
    if not CRD.is_file():
        pytest.skip("no CRDs of KubeRay beside the repository (../shared/kuberay)")
    schema = load_schema(CRD, "v1")
    assert list(find_problems(schema, apply_defaults(schema, services[kind]))) == []


@pytest.mark.parametrize("kind", KINDS)
def test_no_pod_is_root_or_writes_to_its_image(kind: str, services: Mapping[str, Document]) -> None:
    for spec in pods_of(services[kind]):
        pod = spec["securityContext"]
        assert (pod["runAsNonRoot"], pod["runAsUser"]) == (True, 1000)
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
        (container,) = spec["containers"]
        own = container["securityContext"]
        assert own["readOnlyRootFilesystem"] is True
        assert own["allowPrivilegeEscalation"] is False
        assert own["capabilities"] == {"drop": ["ALL"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        writable = {
            mount["mountPath"]: volumes[mount["name"]]
            for mount in container["volumeMounts"]
            if not mount.get("readOnly")
        }
        assert writable.keys() == {"/dev/shm", "/tmp", "/tmp/ray", "/home/sm4ll"}
        assert all("sizeLimit" in volume["emptyDir"] for volume in writable.values())
        assert env_of(container)["HOME"] in writable


def test_only_the_head_has_a_token_of_the_api_server(services: Mapping[str, Document]) -> None:
    """Its autoscaler asks for pods."""
    head, *others = pods_of(services["gpu"])
    assert head["automountServiceAccountToken"] is True
    assert [spec["automountServiceAccountToken"] for spec in others] == [False] * len(others)


def test_the_head_serves_nobody(services: Mapping[str, Document]) -> None:
    service = services["production"]
    head = config_of(service)["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert service["spec"]["excludeHeadPodFromServeSvc"] is True
    (container,) = head["template"]["spec"]["containers"]
    assert env_of(container)["NVIDIA_VISIBLE_DEVICES"] == "void"
    # Or KubeRay makes no service at all: it takes the port from here.
    assert {"name": "serve", "containerPort": 8000} in container["ports"]


def test_a_pod_of_a_gpu_pool_has_one_on_nodes_of_its_product(
    services: Mapping[str, Document],
) -> None:
    for name in ("light-gpu-l4", "heavy-gpu-l4"):
        group = groups_of(services["gpu"])[name]
        resources = worker(services["gpu"], name)["resources"]
        assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"]
        assert resources["requests"]["memory"] == resources["limits"]["memory"]
        assert group["rayStartParams"]["num-gpus"] == "1"
        spec = group["template"]["spec"]
        affinity = spec["affinity"]["nodeAffinity"]
        (term,) = affinity["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        label = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]}
        assert term["matchExpressions"] == [label]
        taint = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
        assert spec["tolerations"] == [taint]
        assert worker(services["gpu"], name)["image"] == "sm4ll-serve-gpu"
        assert "NVIDIA_VISIBLE_DEVICES" not in env_of(worker(services["gpu"], name))
    assert env_of(worker(services["gpu"], "router"))["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_slices_and_shared_gpus_are_asked_for_as_the_device_plugin_names_them(
    tmp_path: Path,
) -> None:
    sliced = {"name": "l4", "resource": "nvidia.com/gpu.shared", "product": "NVIDIA-L4-SHARED"}
    service = on_gpus(tmp_path, gpus={L4: {**sliced, "node_labels": {"team": "tryon"}}})
    resources = worker(service, "light-gpu-l4")["resources"]
    assert resources["limits"]["nvidia.com/gpu.shared"] == "1"
    # KubeRay and the autoscaler know no such name as a GPU: it is said to both.
    assert groups_of(service)["light-gpu-l4"]["rayStartParams"]["num-gpus"] == "1"
    assert "NVIDIA-L4-SHARED" in str(groups_of(service)["light-gpu-l4"]["template"])
    assert "team" in str(groups_of(service)["light-gpu-l4"]["template"]["spec"]["affinity"])


def test_shared_memory_counts_in_the_limit_and_holds_rays_store(
    services: Mapping[str, Document],
) -> None:
    for group in config_of(services["gpu"])["workerGroupSpecs"]:
        volumes = {v["name"]: v for v in group["template"]["spec"]["volumes"]}
        volume = volumes["shared-mem"]["emptyDir"]
        size_gib = float(volume["sizeLimit"].removesuffix("Gi"))
        assert volume["medium"] == "Memory"
        assert int(group["rayStartParams"]["object-store-memory"]) == int(0.9 * size_gib * GIB)
        limit = group["template"]["spec"]["containers"][0]["resources"]["limits"]["memory"]
        assert float(limit.removesuffix("Gi")) > size_gib


def test_every_ray_container_has_every_flag(services: Mapping[str, Document]) -> None:
    for spec in pods_of(services["production"]):
        found = env_of(spec["containers"][0])
        assert found.items() >= {**flags_for("anywhere"), **TRACING_FLAGS}.items()
        assert found["RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY"] == "1"
        assert found["HF_HUB_OFFLINE"] == "1"


def test_secrets_come_by_reference_and_only_to_who_opens_what_they_open(
    services: Mapping[str, Document],
) -> None:
    def secrets(container: Document) -> set[str]:
        values = env_of(container).values()
        return {value["secretKeyRef"]["name"] for value in values if isinstance(value, dict)}

    service = services["gpu"]
    stores = {"sm4ll-database", "sm4ll-redis", "sm4ll-blobs"}
    assert secrets(worker(service, "router")) == {*stores, "sm4ll-providers"}
    for name in ("segment", "light-cpu", "light-gpu-l4", "heavy-gpu-l4"):
        assert secrets(worker(service, name)) == {"sm4ll-providers"}
    optional = env_of(worker(service, "router"))["SM4LL_OPENAI_API_KEY"]
    assert optional["secretKeyRef"]["optional"] is True


def test_a_worker_is_ready_when_its_proxy_answers(services: Mapping[str, Document]) -> None:
    """KubeRay's services send to every ready worker."""
    for name in groups_of(services["gpu"]):
        asked = " ".join(worker(services["gpu"], name)["readinessProbe"]["exec"]["command"])
        raylet, proxy = asked.split(" && ")
        assert "52365/api/local_raylet_healthz" in raylet
        assert "8000/-/healthz" in proxy


def test_whoever_stops_serves_until_the_longest_request_is_over(
    services: Mapping[str, Document],
) -> None:
    service = services["production"]
    longest_s = serve_config_of(service)["http_options"]["request_timeout_s"]
    for group in config_of(service)["workerGroupSpecs"]:
        spec = group["template"]["spec"]
        command = spec["containers"][0]["lifecycle"]["preStop"]["exec"]["command"]
        assert command[0] == "sleep"  # `ray stop` would end the proxy at once
        assert longest_s < float(command[1]) < spec["terminationGracePeriodSeconds"]
    assert service["spec"]["rayClusterDeletionDelaySeconds"] > longest_s


def test_production_survives_its_head_and_asks_for_a_token(
    services: Mapping[str, Document],
) -> None:
    config = config_of(services["production"])
    assert config["authOptions"] == {"mode": "token", "secretName": "sm4ll-ray-token"}
    options = config["gcsFaultToleranceOptions"]
    assert "externalStorageNamespace" not in options  # two clusters of an upgrade would share it
    variable = re.fullmatch(r"\$\((\w+)\)", options["redisAddress"])
    assert variable is not None
    head = next(pods_of(services["production"]))["containers"][0]
    reference = {"secretKeyRef": {"name": "sm4ll-redis", "key": "address"}}
    assert env_of(head)[variable[1]] == reference
    assert services["production"]["spec"]["upgradeStrategy"]["type"].endswith("IncrementalUpgrade")
    assert services["local"]["spec"]["upgradeStrategy"] == {"type": "NewCluster"}


def test_routers_are_spread_and_kept(
    services: Mapping[str, Document], rendered: Mapping[str, Rendered]
) -> None:
    spec = groups_of(services["production"])["router"]["template"]["spec"]
    keys = [one["topologyKey"] for one in spec["topologySpreadConstraints"]]
    assert keys == ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
    text = rendered["production"].files["disruption-budgets.yaml"]
    budgets = {b["metadata"]["name"]: b["spec"] for b in yaml.safe_load_all(text)}
    assert budgets["sm4ll-router"]["minAvailable"] == 1
    assert "sm4ll-light-cpu" not in budgets  # it may be one pod, which a budget would nail down


def test_the_version_of_ray_is_the_pinned_one(services: Mapping[str, Document]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f"ray[serve]=={RAY_VERSION}" in project["dependencies"]
    assert config_of(services["local"])["rayVersion"] == RAY_VERSION


def test_a_model_cache_is_where_the_shape_says(tmp_path: Path) -> None:
    def models(cache: Document) -> tuple[Document, dict[str, Any]]:
        spec = next(pods_of(on_gpus(tmp_path, model_cache=cache)))
        (volume,) = (volume for volume in spec["volumes"] if volume["name"] == "models")
        return volume, env_of(spec["containers"][0])

    node, offline = models({"kind": "node", "path": "/mnt/models"})
    assert node["hostPath"] == {"path": "/mnt/models", "type": "Directory"}
    assert offline["HF_HUB_OFFLINE"] == "1"
    disk, online = models({"kind": "ephemeral", "size_gib": 300, "storage_class": "nvme"})
    template = disk["ephemeral"]["volumeClaimTemplate"]["spec"]
    assert template["resources"] == {"requests": {"storage": "300Gi"}}
    assert "HF_HUB_OFFLINE" not in online


def test_the_documents_that_travel_are_those_the_application_waits_for(
    tmp_path: Path, rendered: Mapping[str, Rendered]
) -> None:
    data = yaml.load(rendered["production"].files["family.yaml"], yaml.CSafeLoader)["data"]
    for name, text in data.items():
        assert re.fullmatch(r"[-._a-zA-Z0-9]+", name)
        (tmp_path / name).write_text(text)
    service = yaml.safe_load(rendered["production"].files["rayservice.yaml"])
    (application,) = serve_config_of(service)["applications"]
    assert application["args"]["revision"] == family_revision(tmp_path / "family.yaml")
    assert {"tenants.yaml", "experiments.yaml"} <= data.keys()


def test_what_was_measured_travels_too(tmp_path: Path) -> None:
    write_measured(tmp_path, "eye@1", {L4: 5.0})
    family = write_yaml(tmp_path / "family.yaml", {"experts": [{"version": "eye@1"}]})
    gpus = write_gpus(tmp_path, [("l4", 1, L4, 1)])
    found = render_overlay("production", SHAPES, files_of(family), gpus)
    data = yaml.safe_load(found.files["family.yaml"])["data"]
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    for name, text in data.items():
        (mounted / name).write_text(text)
    service = yaml.safe_load(found.files["rayservice.yaml"])
    (application,) = serve_config_of(service)["applications"]
    assert family_revision(mounted / "family.yaml") == application["args"]["revision"]
    assert "eye.1.footprint.yaml" in data


@pytest.mark.parametrize("what", ["weights", "golden samples"])
def test_a_bundle_with_files_beside_it_is_refused_with_the_way_out(
    tmp_path: Path, what: str
) -> None:
    if what == "weights":
        write_bundle(tmp_path, "eye@1")  # on weights/klein
    else:
        write_measured(tmp_path, "eye@1", {L4: 5.0})
        (tmp_path / "experts/eye.1/golden").mkdir()
    family = write_yaml(tmp_path / "family.yaml", {"experts": [{"version": "eye@1"}]})
    with pytest.raises(ConfigError, match=r"eye\.1\.yaml: cannot travel .*bundles_dir: /models"):
        render_overlay("local", SHAPES, files_of(family))


def test_bundles_of_the_image_stay_where_they_are(tmp_path: Path) -> None:
    write_bundle(tmp_path, "eye@1")
    document = {"bundles_dir": str(tmp_path / "experts"), "experts": [{"version": "eye@1"}]}
    family = write_yaml(tmp_path / "family.yaml", document)
    found = render_overlay("local", SHAPES, files_of(family))
    data = yaml.safe_load(found.files["family.yaml"])["data"]
    assert data.keys() == {"family.yaml", "tenants.yaml", "experiments.yaml"}
    assert yaml.safe_load(data["family.yaml"])["bundles_dir"] == str(tmp_path / "experts")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "s" * 48}, "at most 47"),
        ({"upgrade": {"strategy": "NewClusterWithIncrementalUpgrade"}}, "gateway_class is missing"),
        ({"upgrade": {"surge_percent": 5, "step_percent": 10}}, "step_percent is above"),
        ({"pods": {"router": {"cpu": 1, "memory_gib": 1}}}, "no size for segment, light-cpu"),
        ({"gpus": {"A": {"name": "l4"}, "B": {"name": "l4"}}}, "two kinds have the same name"),
        ({"gpus": {"A": {"name": "a", "resource": "amd.com/gpu"}}}, "should match pattern"),
    ],
)
def test_a_shape_that_kuberay_would_refuse_is_refused_first(changes: Document, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        production(**changes)


def test_weights_on_cpus_run_in_the_image_that_has_pytorch(tmp_path: Path) -> None:
    """The other has none: replicas could not start."""
    judge = {"embedding": {"source": MODEL}}
    parsing = {"kind": "parsing", "model": MODEL}
    warp = {"kind": "warp"}
    diffusion = {
        **{"kind": "inpaint", "model": MODEL, "prompt": {"text": "worn"}},
        "recipe": {"pipeline": "Flux2KleinInpaintPipeline"},
    }
    known: Document = {"title": "t", "status": "beta"}
    known["licence"] = {"name": "apache-2.0", "commercial_use": True}
    families: dict[str, tuple[Document, Document]] = {
        "nothing": ({"backend": warp}, {}),
        "light-cpu": ({"backend": diffusion, "product": {"canvas": {"size": [512, 512]}}}, {}),
        "segment": ({"backend": warp, "masker": parsing}, {}),
        "judged": ({"backend": warp}, {"judge": {"models": "judge.yaml"}}),
    }
    for name, (changes, more) in families.items():
        folder = tmp_path / name
        folder.mkdir()
        write_yaml(folder / "judge.yaml", judge)
        path = folder / "experts" / "top.1.yaml"
        path.parent.mkdir()
        write_yaml(path, {"expert": "top", "name": "1", **known, **changes})
        family = write_yaml(folder / "family.yaml", {"experts": [{"version": "top@1"}], **more})
        shape = production()
        cluster = plan(family, None, shape)
        service = build_ray_service(cluster, shape, build_serve_config(cluster, shape, "cafe"))
        found = {pool for pool in groups_of(service) if worker(service, pool)["image"] == GPU_IMAGE}
        assert found == {"nothing": set(), "judged": {"segment"}}.get(name, {name})
        for container in (worker(service, pool) for pool in found):
            assert env_of(container)["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_nobody_who_saves_nodes_takes_the_heads(services: Mapping[str, Document]) -> None:
    """Karpenter does not read the other's annotation."""
    for service in services.values():
        told = config_of(service)["headGroupSpec"]["template"]["metadata"]["annotations"]
        assert told["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert told["karpenter.sh/do-not-disrupt"] == "true"
