"""Which models judge painted pictures: `judge.yaml`. Reads and checks; loads no weights."""

from pathlib import Path
from typing import Literal, Self

from pydantic import model_validator

from deployments.sources import ModelSource
from serve.config import Config, JudgeConfig, load_yaml


class VisionModel(Config):
    """A vision network of transformers that turns a picture into a vector."""

    source: ModelSource
    pooling: Literal["auto", "pooled", "first", "mean"] = "auto"
    """What of its answer is the vector: what it pools itself, its first token, or the mean of all
    tokens. auto: its pooled answer where it has one, else the mean."""


class JudgeModels(Config):
    """`judge.yaml`. A model that is absent leaves its metric out of the evidence."""

    embedding: VisionModel | None = None
    """Tells how like the product what was painted looks (DINOv2, CLIP, SigLIP): `embedding`."""
    face: VisionModel | None = None
    """Tells people apart, for pictures of a face alone: `face`."""

    @model_validator(mode="after")
    def _names_a_model(self) -> Self:
        if self.embedding is None and self.face is None:
            raise ValueError("names no model: say embedding, face or both")
        return self


def load_judge(family: Path, judge: JudgeConfig) -> tuple[JudgeModels, Path]:
    """The models of a family's judge, and the folder that their paths are relative to.

    Raises:
        ConfigError: the file is missing or does not fit; names file and key.
    """
    path = (family.parent / judge.models).resolve()
    return load_yaml(path, JudgeModels), path.parent
