"""Where weights come from: a directory of this machine, or a hub repository at one commit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple, Self

from pydantic import BaseModel, Field, model_validator

from serve.config import Config

Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
"""A full commit hash: branches and tags move, and with them what is served."""


class ModelSource(Config):
    """Weights in the layout of `save_pretrained`, pinned."""

    path: Path | None = None
    """A directory; relative to the bundle's file."""
    repo: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    """A hub repository, `owner/name`; needs `revision`."""
    revision: Revision | None = None
    subfolder: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    """Of the weight files, checked at load where given: pins a directory as a revision pins a
    repository. `sm4ll experts freeze` writes it."""

    @model_validator(mode="after")
    def _says_one_place(self) -> Self:
        if (self.path is None) == (self.repo is None):
            raise ValueError("say either path or repo")
        if self.repo is not None and self.revision is None:
            raise ValueError(f"{self.repo} needs a revision of 40 hex digits: branches move")
        if self.path is not None and self.revision is not None:
            raise ValueError("a path has no revision; pin it with sha256")
        return self

    @property
    def label(self) -> str:
        """How messages name it."""
        if self.repo is not None:
            return f"{self.repo}@{(self.revision or '')[:8]}"
        return str(self.path)

    def located(self, home: Path) -> "ModelSource":
        """The same with its path made absolute against `home`, the folder of the bundle's file."""
        if self.path is None or self.path.is_absolute():
            return self
        return self.model_copy(update={"path": (home / self.path).resolve()})


class NamedSource(NamedTuple):
    """One place of a configuration that names weights."""

    place: str
    """`backend.adapter.source`."""
    owner: BaseModel
    """What says it, and so how it is read."""
    source: ModelSource


def find_sources(config: BaseModel, place: str = "") -> Iterator[NamedSource]:
    """Every one, so that a new kind of backend or masker is among them."""
    for name, value in config:
        here = f"{place}.{name}" if place else name
        if isinstance(value, ModelSource):
            yield NamedSource(here, config, value)
        elif isinstance(value, BaseModel):
            yield from find_sources(value, here)
