"""Golden samples on disk: what a version painted when it was frozen.

They lie in the bundle's folder under `golden/`: one folder per sample with the request and
expected.png, and golden.yaml about them all.
"""

import datetime as dt
import shutil
from dataclasses import dataclass
from pathlib import Path

import yaml
from pydantic import Field, NonNegativeFloat

from deployments.backends.environment import Environment
from deployments.bundle import Bundle, UInt8
from deployments.samples import read_png, read_request, write_png, write_request
from serve.config import Config, load_yaml
from serve.errors import BundleInvalid, ConfigError
from serve.messages import ExpertRequest, UInt8Array


class Tolerance(Config):
    """How far a picture may be from the expected one, in levels of 255 inside the region.

    What lies outside is never pasted, and would water down the mean.
    """

    max_abs_diff: UInt8 = 4
    mean_abs_diff: NonNegativeFloat = 0.5
    other_device: NonNegativeFloat = 3.0
    """Mean where device or torch are not those of the recording: other kernels round otherwise, and
    a few steps later single pixels differ widely, while the picture stays the same."""


class GoldenRecord(Config):
    """`golden.yaml`: of what, where and when the samples were recorded."""

    version: str
    bundle_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    backend: str
    device: str
    torch: str | None
    date: dt.date
    tolerance: Tolerance = Tolerance()
    weights: dict[str, str] = {}
    """Digest of each directory of weights that the bundle does not pin itself, by its path."""
    samples: tuple[str, ...] = Field(min_length=1)

    @property
    def environment(self) -> Environment:
        return Environment(self.device, self.torch)


@dataclass(frozen=True, slots=True)
class GoldenSample:
    """One request and what came of it."""

    name: str
    request: ExpertRequest
    expected_hwc: UInt8Array


@dataclass(frozen=True, slots=True)
class GoldenSet:
    """All that one version was frozen with."""

    record: GoldenRecord
    samples: tuple[GoldenSample, ...]


def golden_folder(bundle: Bundle) -> Path:
    return bundle.folder / "golden"


def load_golden(bundle: Bundle) -> GoldenSet | None:
    """Read a version's golden samples; None where it has none.

    Raises:
        BundleInvalid: they are there and cannot be read; names the file.
    """
    home = golden_folder(bundle)
    if not home.is_dir():
        return None
    try:
        record = load_yaml(home / "golden.yaml", GoldenRecord)
    except ConfigError as exc:
        raise BundleInvalid(str(exc), remedy=freeze_remedy(bundle)) from exc
    samples = tuple(
        GoldenSample(name, read_request(home / name), read_png(home / name / "expected.png"))
        for name in record.samples
    )
    return GoldenSet(record, samples)


def freeze_remedy(bundle: Bundle) -> str:
    return f"record them again: sm4ll experts freeze {bundle.version}"


def write_golden(home: Path, golden: GoldenSet) -> None:
    """Put a set in its place, instead of the one before."""
    # Beside its place first: a freeze that is stopped leaves the old set whole.
    new = home.with_name("golden.new")
    shutil.rmtree(new, ignore_errors=True)
    for sample in golden.samples:
        (new / sample.name).mkdir(parents=True)
        write_request(new / sample.name, sample.request)
        write_png(new / sample.name / "expected.png", sample.expected_hwc)
    record = golden.record.model_dump(mode="json")
    (new / "golden.yaml").write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")
    shutil.rmtree(home, ignore_errors=True)
    new.rename(home)
