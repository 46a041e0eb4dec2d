"""The image holds what the lock says and what a pod needs, and nothing that helps an intruder."""

import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from fnmatch import fnmatch
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from k8s.requirements import list_requirements

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "k8s/Dockerfile"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = {"cpu": ["hub"], "gpu": ["diffusion", "fp8"]}
Instruction = tuple[str, str]


def read_instructions() -> list[Instruction]:
    """(INSTRUCTION, rest) with lines joined and comments gone."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not re.match(r"\s*#", line)]
    joined = "\n".join(lines).replace("\\\n", " ")
    split = [line.strip().split(maxsplit=1) for line in joined.splitlines() if line.strip()]
    return [(name.upper(), " ".join(rest.split())) for name, rest in split]


def read_stages() -> dict[str, list[Instruction]]:
    stages: dict[str, list[Instruction]] = {"": []}
    for name, rest in read_instructions():
        if name == "FROM":
            stages[rest.split(" AS ")[1]] = [(name, rest)]
        else:
            stages[list(stages)[-1]].append((name, rest))
    return stages


STAGES = read_stages()
LOCK = {
    canonicalize_name(name): version
    for name, version in (
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines()
    )
}


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False
    )
    assert done.stdout + done.stderr == ""
    assert done.returncode == 0


def test_bases_are_the_ray_and_python_that_the_project_pins() -> None:
    bases = [rest for name, rest in read_instructions() if name == "FROM" and "/" not in rest]
    outside = [base.split()[0] for base in bases if base.split()[0] not in STAGES]
    (ray,) = (line for line in PYPROJECT["project"]["dependencies"] if line.startswith("ray["))
    version = ray.split("==")[1]
    python = PYPROJECT["tool"]["ruff"]["target-version"]
    assert outside == [
        f"${{RAY_IMAGE}}:{version}-{python}-cpu${{CPU_DIGEST}}",
        f"${{RAY_IMAGE}}:{version}-{python}-gpu${{GPU_DIGEST}}",
    ]
    assert LOCK["ray"] == version
    assert f'ray.__version__ == "{version}"' in DOCKERFILE.read_text()


def test_no_digest_is_made_up() -> None:
    arguments = dict(rest.split("=", 1) for name, rest in STAGES[""] if name == "ARG")
    assert arguments["RAY_IMAGE"] == "docker.io/rayproject/ray"
    for digest in (arguments["CPU_DIGEST"], arguments["GPU_DIGEST"]):
        assert re.fullmatch(r'""|@sha256:[0-9a-f]{64}', digest)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_targets_run_as_a_user_that_kubernetes_can_tell_from_root(target: str) -> None:
    assert [rest for name, rest in STAGES[target] if name == "USER"][-1] == "1000:100"
    assert ("RUN", "sed -i '/NOPASSWD/d' /etc/sudoers") in STAGES[f"{target}-base"]
    assert STAGES[f"{target}-base"][-1] == ("USER", "1000:100")


def test_both_targets_end_alike() -> None:
    gpu = STAGES["gpu"]
    assert gpu[1] == ("RUN", STAGES["cpu"][1][1].replace("cpu.txt", "gpu.txt"))
    assert gpu[-len(STAGES["cpu"]) + 2 :] == STAGES["cpu"][2:]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_build_fails_without_what_probes_and_cluster_start(target: str) -> None:
    runs = [rest for name, rest in STAGES[target] if name == "RUN"]
    (checked,) = (run for run in runs if "serve.app" in run)
    for needed in ("command -v bash", "command -v wget", "ray --version", "sm4ll version"):
        assert needed in checked.split(" && ")
    assert any("family.is_file()" in part for part in checked.split(" && "))


def test_no_weights_are_baked_in() -> None:
    runs = " ".join(rest for name, rest in read_instructions() if name == "RUN")
    assert not re.search(r"experts fetch(?! --help)|hf download|snapshot_download", runs)


def test_nothing_comes_from_a_url_and_nothing_secret_is_said() -> None:
    for name, rest in read_instructions():
        assert name != "ADD"
        if name in ("RUN", "COPY"):
            assert "://" not in rest
        if name in ("ARG", "ENV"):
            assert not re.search(r"token|secret|passw|key|credential", rest, re.I)


def test_byte_code_is_compiled_and_may_be_written() -> None:
    assert "PYTHONDONTWRITEBYTECODE" not in DOCKERFILE.read_text()
    for target in ("cpu", "gpu"):
        assert any("compileall" in rest for _, rest in STAGES[target])


def test_labels_name_source_revision_version_and_licences() -> None:
    (label,) = (rest for name, rest in STAGES["gpu"] if name == "LABEL")
    for key in ("source", "revision", "version", "licenses"):
        assert re.search(rf'org\.opencontainers\.image\.{key}="\$\{{\w+\}}"', label)


def test_only_locked_libraries_and_the_wheel_are_installed() -> None:
    installs = [rest for name, rest in read_instructions() if name == "RUN" and "pip" in rest]
    for rest in installs:
        for command in re.findall(r"pip (?:--cache-dir \S+ )?install (.*?)(?: &&|$)", rest):
            locked = re.match(
                r"--constraint \S*constraints\.txt (--requirement|hatchling)", command
            )
            assert locked or command == "--no-cache-dir --no-deps /mnt/wheels/*.whl"
    (lists,) = (rest for name, rest in STAGES["locked"] if name == "RUN")
    for target, extras in EXTRAS.items():
        assert f"pyproject.toml {' '.join(extras)} > /tmp/{target}.txt" in lists


def names_of(lines: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(line).name) for line in lines}


def test_torch_is_in_the_gpu_image_alone() -> None:
    cpu, gpu = (names_of(list_requirements(ROOT / "pyproject.toml", EXTRAS[t])) for t in EXTRAS)
    assert "torch" in gpu - cpu
    assert "huggingface-hub" in cpu  # the prefetch Job runs in it
    dev = names_of([line for line in PYPROJECT["dependency-groups"]["dev"]])
    assert not (cpu | gpu) & (dev - {"cryptography", "psutil"})


def walk(lines: list[str]) -> Iterator[tuple[str, str]]:
    """Name and version of what is installed here of these, and of what they ask for in turn."""
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(Requirement(line), "") for line in lines]
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": extra}):
            continue
        known = (canonicalize_name(wanted.name), frozenset(wanted.extras))
        if known in seen or known[0] == "torchao":  # for GPUs that have fp8: not installed here
            continue
        seen.add(known)
        found = distribution(wanted.name)
        yield known[0], found.version.partition("+")[0]  # torch here is a CPU build
        asked = [Requirement(line) for line in found.requires or ()]
        waiting += [(one, extra) for one in asked for extra in ("", *wanted.extras)]


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_every_library_of_the_image_is_in_the_lock(target: str) -> None:
    installed = dict(walk(list_requirements(ROOT / "pyproject.toml", EXTRAS[target])))
    assert len(installed) > 90
    assert {name: LOCK.get(name) for name in installed} == installed


def test_what_torch_brings_for_cuda_is_in_the_lock() -> None:
    """pip resolved torch from PyPI to these; here a CPU build is installed, which says none."""
    brought = {name for name in LOCK if name.startswith("nvidia-")} - {"nvidia-ml-py"}
    assert len(brought) >= 15
    assert {"triton", "cuda-toolkit", "cuda-bindings", "cuda-pathfinder", "torchao"} <= LOCK.keys()


def is_sent(path: str) -> bool:
    """As Docker reads the file: the last line that matches a path or a folder above it decides.

    Source: https://docs.docker.com/build/concepts/context/#dockerignore-files
    """
    sent = True
    parts = path.split("/")
    above = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    for line in (ROOT / "k8s/Dockerfile.dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#"):
            deep = pattern.removeprefix("**/")
            names = parts if deep != pattern else above
            if any(fnmatch(name, deep) for name in names):
                sent = line.startswith("!")
    return sent


def test_context_is_what_the_wheel_is_built_from_and_no_more() -> None:
    copied = ["pyproject.toml", "constraints.txt", "k8s/requirements.py", "README.md"]
    packed = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
    packed = [f"{name}/x" for name in (*packed["packages"], *packed["force-include"])]
    assert all(map(is_sent, [*copied, *packed, "k8s/base/kustomization.yaml"]))
    kept = [".git/config", ".venv/bin/python", "tests/conftest.py", "demo/index.html", ".env"]
    kept += ["serve/__pycache__/app.pyc", "k8s/Dockerfile", "hub/model.safetensors", "secrets.yaml"]
    assert not any(map(is_sent, kept))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, as pip would lay it down."""
    home = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", home]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = home.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home / "site")
    return home / "site"


def test_wheel_holds_every_file_that_is_no_code(unpacked: Path) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "serve", "deployments", "k8s", "configs"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in listed:
        packed = re.sub(r"^configs/", "sm4ll_serve_configs/", name)
        if (ROOT / name).is_file():
            assert (unpacked / packed).is_file(), name


def test_commands_work_where_there_is_no_checkout(unpacked: Path, tmp_path: Path) -> None:
    code = f"""
import sys; sys.path.insert(0, {str(unpacked)!r})
from serve.settings import CONFIGS_DIR
from serve.cli import app
assert str(CONFIGS_DIR).startswith({str(unpacked)!r}), CONFIGS_DIR
for command in (["plan"], ["experts", "fetch"], ["observability", "render", "-o", "rendered"]):
    app(command, standalone_mode=False)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "none of 7 versions has weights" in done.stdout
    assert list((tmp_path / "rendered").rglob("*.json"))
