"""The ways the region is found, each typed; `kind` tells them apart."""

import hashlib
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat

from deployments.sources import ModelSource
from serve.config import Config

Part = Literal["face", "hair", "hands"]

Meaning = Literal[
    "background",
    "hat",
    "hair",
    "face",
    "eyes",
    "brows",
    "mouth",
    "ears",
    "glasses",
    "neck",
    "top",
    "dress",
    "skirt",
    "pants",
    "belt",
    "scarf",
    "bag",
    "shoe",
    "arm",
    "hand",
    "torso",
    "leg",
    "feet",
    "jewelry",
    "detail",
    "other",
]
"""What a label of a human parser can mean; `detail` (a pocket, a zip) belongs to the garment it
lies on."""


class Masker(Config):
    """What every masker says."""

    kind: str
    dilation: NonNegativeFloat = Field(default=0.0, le=1.0)
    """Grows the region by this fraction of its box's shorter side."""

    @property
    def id(self) -> str:
        """Which deployment finds the region: maskers that differ in dilation only share one."""
        settings = self.model_dump_json(exclude={"kind", "dilation"}, exclude_defaults=True)
        if settings == "{}":
            return self.kind
        return f"{self.kind}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"


class ClassicalMasker(Masker):
    """OpenCV, no weights."""

    kind: Literal["classical"] = "classical"


class ParsingMasker(Masker):
    """A human parser of transformers: its labels, by name, make the region."""

    kind: Literal["parsing"] = "parsing"
    model: ModelSource
    preset: Literal[
        "auto",
        "segformer_b2_clothes",
        "fashn-human-parser",
        "face-parsing",
        "segformer-b2-human",
    ] = "auto"
    """How the model's label names map to ours; auto chooses by the names themselves."""
    labels: dict[str, Meaning] = Field(default_factory=dict)
    """Label names of the model that no preset knows, or knows otherwise."""
    hull: bool = True
    """Take the convex hull: a tight mask tells the expert the old garment's shape."""
    protect: tuple[Part, ...] = ("face", "hair", "hands")
    """Never part of the region, unless the expert is about them."""


class MattingMasker(Masker):
    """A matting network: the person with soft edges; the background expert's region."""

    kind: Literal["matting"] = "matting"
    model: ModelSource
    parser: ModelSource | None = None
    """Makes the trimap for networks that need one (VitMatte)."""


class LandmarksMasker(Masker):
    """A keypoint network: regions by geometry, for eyewear, face and shoes."""

    kind: Literal["landmarks"] = "landmarks"
    model: ModelSource
    detector: ModelSource | None = None
    """Finds the person's box first, for top-down networks; the whole picture when absent."""
    points: Literal["coco17", "coco133", "sapiens308", "facemesh478"] = "coco17"
    """What the network's points mean, in its order."""


MaskerConfig = Annotated[
    ClassicalMasker | ParsingMasker | MattingMasker | LandmarksMasker, Field(discriminator="kind")
]
