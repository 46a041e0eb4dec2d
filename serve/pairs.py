"""Training pairs on disk: which files belong together."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from serve.config import Config
from serve.errors import ConfigError

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".heic", ".heif")
LAYOUT = "one folder per pair: DIR/<name>/ with person.*, product.* and, if any, mask.*, target.*"


@dataclass(frozen=True, slots=True)
class Pair:
    """One training pair's files by what they are: person, product, mask, target."""

    name: str
    files: Mapping[str, Path]


class Skipped(Config):
    """A pair that became no training input, and why."""

    name: str
    code: str
    reason: str
    remedy: str = ""


def find_pairs(folder: Path) -> tuple[list[Pair], list[Skipped]]:
    """Every pair below a folder by name, and what looks like one and is none.

    Raises:
        ConfigError: there is nothing that looks like a pair.
    """
    pairs, skipped = [], []
    for home in sorted(path for path in folder.iterdir() if path.is_dir()):
        found = {
            role: [path for path in sorted(home.glob(f"{role}.*")) if _is_picture(path)]
            for role in ("person", "product", "mask", "target")
        }
        if not any(found.values()):
            continue
        twice = [role for role, paths in found.items() if len(paths) > 1]
        missing = [role for role in ("person", "product") if not found[role]]
        if twice or missing:
            wrong = [f"several {role}.*" for role in twice] + [f"no {role}.*" for role in missing]
            skipped.append(Skipped(name=home.name, code="no_pair", reason=", ".join(wrong)))
        else:
            pairs.append(
                Pair(home.name, {role: paths[0] for role, paths in found.items() if paths})
            )
    if not pairs and not skipped:
        raise ConfigError(f"{folder}: no pairs here; wanted is {LAYOUT}")
    return pairs, skipped


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in PICTURES and path.is_file()
