"""Experiments as administrators see them: what is compared, how it stands, and who gets what."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from serve.designs import ExperimentDesign, Share, Slug, WantedExperiment
from serve.schemas.base import Wire, shown

ExperimentStatus = Literal["draft", "running", "paused", "frozen", "ended"]
Reason = Annotated[str, Field(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


class NewExperiment(WantedExperiment):
    """Versions of one expert that shall be compared."""

    model_config = shown(
        id="eye-2",
        title="Sharper temples",
        expert="eye",
        unit="user",
        fallback="request",
        arms=[
            {"name": "control", "version": "eye@1", "weight": 9_000},
            {"name": "new", "version": "eye@2", "weight": 1_000},
        ],
        start=True,
    )


class AllocationRange(Wire):
    """Buckets of one arm, of the 10,000 that units are hashed to."""

    start: int
    end: int
    """Exclusive."""
    arm: str


class ExperimentCard(Wire):
    """One experiment as it stands."""

    id: str
    design: ExperimentDesign
    """Its weights are those in force."""
    status: ExperimentStatus
    """`paused` assigns nobody; `frozen` assigns as before, and no weight moves."""
    reason: str
    """Why it is in this state, where somebody or something said so."""
    revision: int
    """Of the allocation in force; every change of the weights makes another."""
    ranges: tuple[AllocationRange, ...]
    rollout: str | None
    """The open rollout that moves its weights; nobody else may."""
    created_by: str
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    ended_at: datetime | None


class ExperimentPage(Wire):
    """One page, newest first."""

    items: tuple[ExperimentCard, ...]
    next: str | None
    """`after` of the next page."""


class WeightsChange(Wire):
    """Other weights: only units of arms that shrink change hands."""

    model_config = shown(weights={"control": 7_500, "new": 2_500}, revision=1)

    weights: Annotated[Mapping[Slug, Share], Field(min_length=2, max_length=8)]
    """Hundredths of a percent of every arm; they add up to 10000."""
    revision: int | None = Field(default=None, ge=1)
    """The one you have seen: a change that somebody else made meanwhile is refused (409)."""
    reason: Reason = ""


class Allocation(Wire):
    """Whose buckets were whose from one change of the weights to the next."""

    revision: int
    weights: dict[str, int]
    ranges: tuple[AllocationRange, ...]
    num_moved: int
    """Buckets that changed hands when it came, of 10,000."""
    reason: str
    at: datetime


class AllocationList(Wire):
    """Every allocation, the first one first."""

    items: tuple[Allocation, ...]


class AssignmentAnswer(Wire):
    """Who would get which arm, and why not."""

    experiment: str
    status: ExperimentStatus
    takes_part: bool
    """It gets the arm now."""
    arm: str | None
    """Also while the experiment assigns nobody: what it would get."""
    version: str | None
    reason: str
    """Why it takes no part."""
    unit: str | None
    """What stays on one arm, `kind:tenant:value`."""
    unit_hash: str | None
    """What exposures know of it."""
    bucket: int | None
    """Of 10,000; see `ranges`."""
    revision: int
