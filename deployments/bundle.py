"""An expert bundle: everything that shapes what one expert version is given and gives back.

Reads and verifies; loads no weights.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from serve.config import Config, FamilyConfig, VersionId, load_yaml
from serve.errors import ConfigError
from serve.messages import Expert
from serve.schemas import Quality


class WarpConfig(Config):
    """The embedded default: classical computer vision, no weights, a preview."""

    kind: Literal["warp"] = "warp"


class NoopConfig(Config):
    """Gives the crop back unchanged: measures everything around an expert."""

    kind: Literal["noop"] = "noop"


BackendConfig = Annotated[WarpConfig | NoopConfig, Field(discriminator="kind")]


class Licence(Config):
    """Under which terms the version may be used."""

    name: str
    commercial_use: bool
    url: str | None = None


class Masker(Config):
    """How the region is found."""

    kind: Literal["classical"] = "classical"
    dilation: NonNegativeFloat = Field(default=0.0, le=1.0)
    """Grows the region by this fraction of its box's shorter side."""


class Crop(Config):
    """Which part of the picture the expert sees, and at what size."""

    context: PositiveFloat = Field(default=1.3, ge=1.0, le=4.0)
    """The region's box times this is the crop."""
    size_px: PositiveInt = 768
    """Longer side of what the expert sees."""
    multiple_of: PositiveInt = 16


class Product(Config):
    """How the product picture is prepared."""

    max_side_px: PositiveInt = 1024
    landmarks: bool = False
    """True when the product is itself a person whose face must be found."""


class Blend(Config):
    """How the painted crop returns into the picture."""

    feather: NonNegativeFloat = Field(default=0.02, le=0.5)
    """Width of the inner soft edge as a fraction of the region box's shorter side."""
    colour_match: bool = False
    """Shift the painted colours to the ring around the region; for latent-diffusion experts."""


class Tiers(Config):
    """Denoising steps per quality; the sm4ll API publishes 16 and 40."""

    draft: PositiveInt = 4
    normal: PositiveInt = 16
    high: PositiveInt = 40


class Bundle(Config):
    """One expert version."""

    expert: Expert
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")
    title: str
    """What it does, for people."""
    status: Literal["pre-release", "alpha", "beta", "stable", "benchmark"]
    licence: Licence
    backend: BackendConfig = WarpConfig()
    masker: Masker = Masker()
    crop: Crop = Crop()
    product: Product = Product()
    blend: Blend = Blend()
    tiers: Tiers = Tiers()
    guidance: NonNegativeFloat = 0.0
    imaging: Literal["full", "passthrough"] = "full"
    """`passthrough` sends the encoded bytes through the expert and back, for benchmarks only."""

    @model_validator(mode="after")
    def _only_noop_passes_bytes_through(self) -> Self:
        if self.imaging == "passthrough" and self.backend.kind != "noop":
            raise ValueError("imaging: passthrough works with the noop backend only")
        return self

    @property
    def version(self) -> VersionId:
        return f"{self.expert}@{self.name}"

    @property
    def is_preview(self) -> bool:
        return self.backend.kind == "warp"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of everything the bundle pins; changes when any of it does."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    def num_steps(self, quality: Quality) -> int:
        steps: int = getattr(self.tiers, quality)
        return steps


def bundle_path(bundles_dir: Path, version: VersionId) -> Path:
    """`eye@1` lies in `eye.1.yaml`."""
    return bundles_dir / f"{version.replace('@', '.', 1)}.yaml"


def load_bundle(path: Path) -> Bundle:
    """Read one bundle.

    Raises:
        ConfigError: unreadable, not a bundle, or named differently from its file.
    """
    bundle = load_yaml(path, Bundle)
    if path.name != bundle_path(path.parent, bundle.version).name:
        raise ConfigError(f"{path}: the file's name says otherwise than its {bundle.version}")
    return bundle


def load_family(path: Path) -> tuple[FamilyConfig, dict[VersionId, Bundle]]:
    """Read the family and the bundle of every version it deploys.

    Raises:
        ConfigError: any of the files cannot be used; the message names it.
    """
    family = load_yaml(path, FamilyConfig)
    bundles_dir = path.parent / family.bundles_dir
    return family, {
        deployed.version: load_bundle(bundle_path(bundles_dir, deployed.version))
        for deployed in family.experts
    }
