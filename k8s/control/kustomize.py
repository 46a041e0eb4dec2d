"""An overlay as the objects it stands for, built by kubectl's own kustomize."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import yaml

from k8s.control.connection import Manifest
from serve.errors import ConfigError

OVERLAYS_DIR = Path(__file__).resolve().parents[1] / "overlays"
TIMEOUT_S = 120.0


def find_overlay(overlay: str) -> Path:
    """A folder as it is given, or one of the shipped overlays by its name.

    Raises:
        ConfigError: there is neither.
    """
    given = Path(overlay)
    shipped = OVERLAYS_DIR / overlay
    for folder in (shipped, given) if given.name == overlay else (given,):
        if (folder / "kustomization.yaml").is_file():
            return folder.resolve()
    names = sorted(one.parent.name for one in OVERLAYS_DIR.glob("*/kustomization.yaml"))
    raise ConfigError(
        f"{overlay}: no overlay. It must be a folder with a kustomization.yaml, or one of "
        f"{', '.join(names) or 'the shipped ones, of which there are none here'}."
    )


def build(folder: Path, namespace: str | None = None) -> list[Manifest]:
    """All objects of the overlay.

    Args:
        namespace: Put everything into this one instead of the overlay's own.

    Raises:
        ConfigError: kubectl is not there, or kustomize refuses the folder.
    """
    if namespace is None:
        return _run(folder)
    with tempfile.TemporaryDirectory() as around:
        # Kustomize renames what refers to the namespace too; a text replacement would not.
        resource = os.path.relpath(folder.resolve(), Path(around).resolve())
        wrapped = {"resources": [resource], "namespace": namespace}
        (Path(around) / "kustomization.yaml").write_text(yaml.safe_dump(wrapped))
        return _run(Path(around))


def _run(folder: Path) -> list[Manifest]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        raise ConfigError(
            "kubectl is not installed: it builds the overlay (`kubectl kustomize`). Install "
            "version 1.32 or later: https://kubernetes.io/docs/tasks/tools/"
        )
    built = subprocess.run(
        [kubectl, "kustomize", str(folder)], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    if built.returncode != 0:
        raise ConfigError(f"kustomize cannot build {folder}: {built.stderr.strip()}")
    return [one for one in yaml.load_all(built.stdout, yaml.CSafeLoader) if one]
