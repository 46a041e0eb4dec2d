"""A virtual environment for each peer, in a cache directory: none is a dependency of ours."""

import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

INSTALL_TIMEOUT_S = 600.0
LAST_LINES = 3


class CannotInstall(RuntimeError):
    """A peer could not be installed; says what pip said last."""


def python_with(requirements: Sequence[str], cache: Path) -> Path:
    """The interpreter of an environment that has these, made where it is missing.

    Raises:
        CannotInstall: the benchmark goes on without whoever needs it.
    """
    digest = hashlib.sha256("\n".join([sys.version, *requirements]).encode()).hexdigest()[:12]
    folder = cache / digest
    python, done = folder / "bin/python", folder / "complete"
    if done.is_file():
        return python
    _run([sys.executable, "-m", "venv", "--clear", str(folder)])
    _run([str(python), "-m", "pip", "install", "--quiet", *requirements])
    done.write_text("\n".join(requirements) + "\n")
    return python


def _run(command: list[str]) -> None:
    try:
        subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise CannotInstall(str(exc)) from exc
    except subprocess.CalledProcessError as exc:
        said = " / ".join(exc.stderr.strip().splitlines()[-LAST_LINES:])
        raise CannotInstall(said or f"{command[0]} ended with {exc.returncode}") from exc
