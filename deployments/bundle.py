"""An expert bundle: everything that shapes what one expert version is given and gives back.

Reads and verifies; loads no weights.
"""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    model_validator,
)

from deployments.maskers import ClassicalMasker, MaskerConfig
from deployments.recipes import BackendConfig, Diffusion, Drillable, WarpConfig
from serve.config import Config, FamilyConfig, VersionId, load_yaml
from serve.errors import ConfigError
from serve.messages import Expert
from serve.objectives import check_objectives
from serve.schemas.receipt import Quality

MASKED_EXPERTS: Mapping[str, tuple[Expert, ...]] = {
    "matting": ("bg",),
    "landmarks": ("eye", "face", "shoes"),
}
"""What the maskers that do not serve every expert serve."""

UInt8 = Annotated[int, Field(ge=0, le=255)]
SidePx = Annotated[int, Field(ge=1, le=8192)]
"""Of what one request makes the router and the expert hold: 8192 squared are 192 MiB."""
Size = tuple[SidePx, SidePx]
"""Width and height in pixels."""


class Licence(Config):
    """Under which terms the version may be used."""

    name: str
    commercial_use: bool
    url: str | None = None


class Crop(Config):
    """Which part of the picture the expert sees, and at what size."""

    context: PositiveFloat = Field(default=1.3, ge=1.0, le=4.0)
    """The region's box times this is the crop."""
    size_px: SidePx = 768
    """Longer side of what the expert sees."""
    multiple_of: PositiveInt = 16
    sizes: tuple[Size, ...] = ()
    """When given, every crop has one of these sizes, by taking in more of the picture: then
    requests can share a batch and compiled kernels are reused."""

    @model_validator(mode="after")
    def _sizes_are_multiples(self) -> Self:
        for width_px, height_px in self.sizes:
            if width_px % self.multiple_of or height_px % self.multiple_of:
                step = self.multiple_of
                raise ValueError(f"{width_px}x{height_px} is no multiple of {step}, multiple_of")
        return self


class Canvas(Config):
    """The product on a plain ground of a fixed size, whole and centred, its aspect kept."""

    size: Size
    background: tuple[UInt8, UInt8, UInt8] = (255, 255, 255)
    margin: NonNegativeFloat = Field(default=0.05, lt=0.5)
    """Least free border, as a fraction of the canvas' shorter side."""


class Product(Config):
    """How the product picture is prepared."""

    max_side_px: PositiveInt = 1024
    """Where there is no canvas, which has a size of its own."""
    canvas: Canvas | None = None
    """What a diffusion expert is given; without one it gets the cut-out as it is."""
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
    masker: MaskerConfig = ClassicalMasker()
    crop: Crop = Crop()
    product: Product = Product()
    blend: Blend = Blend()
    tiers: Tiers = Tiers()
    guidance: NonNegativeFloat = 0.0
    imaging: Literal["full", "passthrough"] = "full"
    """`passthrough` sends the encoded bytes through the expert and back, for benchmarks only."""
    _home: Path = PrivateAttr(default=Path())

    @model_validator(mode="after")
    def _only_noop_passes_bytes_through(self) -> Self:
        if self.imaging == "passthrough" and self.backend.kind != "noop":
            raise ValueError("imaging: passthrough works with the noop backend only")
        return self

    @model_validator(mode="after")
    def _drills_are_not_shipped(self) -> Self:
        drill = self.backend.drill if isinstance(self.backend, Drillable) else None
        if drill is not None and self.status != "benchmark":
            raise ValueError("backend.drill: bad on purpose, so status must be benchmark")
        return self

    @model_validator(mode="after")
    def _masker_serves_the_expert(self) -> Self:
        served = MASKED_EXPERTS.get(self.masker.kind)
        if served is not None and self.expert not in served:
            raise ValueError(f"a {self.masker.kind} masker finds {', '.join(served)} only")
        if self.product.landmarks and self.masker.kind == "matting":
            raise ValueError("product.landmarks: a matting masker finds none")
        return self

    @model_validator(mode="after")
    def _diffusion_gets_a_canvas(self) -> Self:
        if isinstance(self.backend, Diffusion) and self.product.canvas is None:
            raise ValueError("a diffusion backend needs product.canvas")
        return self

    @property
    def version(self) -> VersionId:
        return f"{self.expert}@{self.name}"

    @property
    def home(self) -> Path:
        """Folder of the bundle's file: paths in it are relative to this."""
        return self._home

    @property
    def folder(self) -> Path:
        """What belongs to this version beside its file: footprint, golden samples."""
        return self._home / f"{self.expert}.{self.name}"

    def located(self, home: Path) -> "Bundle":
        """The same bundle, read from `home`. Where it lies is no part of what it pins."""
        bundle = self.model_copy()
        bundle._home = home
        return bundle

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
    return bundle.located(path.parent.resolve())


def load_family(path: Path) -> tuple[FamilyConfig, dict[VersionId, Bundle]]:
    """Read the family and the bundle of every version it deploys.

    Raises:
        ConfigError: any of the files cannot be used; the message names it.
    """
    family = load_yaml(path, FamilyConfig)
    bundles_dir = path.parent / family.bundles_dir
    bundles = {
        deployed.version: load_bundle(bundle_path(bundles_dir, deployed.version))
        for deployed in family.experts
    }
    for deployed in family.experts:
        _check_licence(path, bundles[deployed.version], deployed.allow_noncommercial)
    for shared in family.shared:
        _check_base(path, [bundles[d.version] for d in family.experts if d.shared == shared.name])
    check_objectives(family, path)
    return family, bundles


def _check_licence(path: Path, bundle: Bundle, allow_noncommercial: bool) -> None:
    if not bundle.licence.commercial_use and not allow_noncommercial:
        raise ConfigError(
            f"{path}: {bundle.version} is under {bundle.licence.name}, which forbids commercial "
            "use; set allow_noncommercial: true on it if yours is not"
        )


def _check_base(path: Path, bundles: list[Bundle]) -> None:
    """Versions that share replicas differ in adapter and prompt only."""
    first, *others = bundles
    if not isinstance(first.backend, Diffusion):
        raise ConfigError(f"{path}: {first.version} has no base to share")
    for other in others:
        if _base_of(other) != _base_of(first):
            raise ConfigError(
                f"{path}: {other.version} and {first.version} cannot share replicas: they differ "
                "in more than adapter and prompt"
            )


def _base_of(bundle: Bundle) -> object:
    return bundle.backend.model_dump(exclude={"adapter", "prompt"}), bundle.home
