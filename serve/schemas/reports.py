"""What an experiment has shown so far.

Differences are towards worse: above 0 the challenger is worse. Where a metric is relative they are
parts of the control's mean; of shares they are differences of shares.
"""

from datetime import datetime
from typing import Literal

from serve.designs import MetricName, Share
from serve.messages import Expert
from serve.schemas.base import Wire

Decision = Literal["better", "worse", "equal", "not_worse", "unknown", "no_data"]
"""`equal`: within the margin either way. `not_worse`: worse by no more than the margin. `unknown`:
no difference shown yet."""


class ArmResult(Wire):
    """One arm on one metric."""

    arm: str
    units: int
    exposures: int
    mean: float | None
    """The share of units that had it, or the mean."""


class MetricResult(Wire):
    """A challenger beside the control on one metric."""

    metric: MetricName
    title: str
    kind: Literal["share", "mean"]
    unit: str
    better: Literal["lower", "higher"]
    is_relative: bool
    control: ArmResult
    challenger: ArmResult
    effect: float | None
    low: float | None
    high: float | None
    """The difference lies between them, whenever one looks, with the experiment's confidence;
    absent where there is too little."""
    p_value: float
    """Of no difference; valid at every look."""
    margin: float
    """What is still as good."""
    decision: Decision
    words: str


class SliceResult(Wire):
    """The same among some of the exposures."""

    by: str
    """`tenant`, `category`, or the name of a tag."""
    value: str
    result: MetricResult
    adjusted_p: float
    """After correction for all slices and metrics together; `decision` goes by it."""
    decision: Decision


class ArmCount(Wire):
    """What an arm got under one allocation."""

    arm: str
    share: Share
    """Hundredths of a percent, as it was meant."""
    units: int
    expected_units: float
    exposures: int


class RevisionCount(Wire):
    """One allocation and what came of it."""

    revision: int
    at: datetime
    arms: tuple[ArmCount, ...]


class SplitVerdict(Wire):
    """Whether the arms got the units they were meant to get (sample ratio mismatch)."""

    is_mismatch: bool
    """Exposures are missing or doubled: nothing else in this report can be relied on."""
    chi2: float
    p_value: float
    """Of the chi-square test, for one look."""
    e_value: float
    """Valid at every look; a mismatch from 1000 on."""
    words: str


class Look(Wire):
    """The primary metric as it stood at one time."""

    at: datetime
    units: int
    """Of the challenger."""
    effect: float | None
    low: float | None
    high: float | None


class Series(Wire):
    """One challenger over time."""

    challenger: str
    metric: MetricName
    looks: tuple[Look, ...]


class PairPictures(Wire):
    """Assets of the caller's tenant; what is not kept any longer is absent."""

    product: str | None = None
    before: str | None = None
    control: str | None = None
    challenger: str | None = None


class DifferentPair(Wire):
    """One request as the control answered it, and as the challenger would have."""

    exposure: str
    challenger: str
    metric: MetricName
    """Which differs most, in multiples of its margin."""
    control_value: float
    challenger_value: float
    margins: float
    at: datetime
    pictures: PairPictures | None = None


class ReportArm(Wire):
    """One version in the experiment."""

    name: str
    version: str
    weight: Share


class Headline(Wire):
    """What to make of one challenger, by the primary metric."""

    challenger: str
    decision: Decision
    words: str


class Report(Wire):
    """What an experiment has shown so far; it may be read at any time."""

    experiment: str
    title: str
    expert: Expert
    state: str
    control: str
    arms: tuple[ReportArm, ...]
    primary: MetricName
    alpha: float
    tenant: str | None
    """Only of this tenant; of all where it is absent."""
    revision: int | None
    """Only under this allocation; under all where it is absent."""
    generated_at: datetime
    first_at: datetime | None
    last_at: datetime | None
    exposures: int
    units: int
    notes: tuple[str, ...]
    """What to know before one reads on."""
    split: SplitVerdict
    headlines: tuple[Headline, ...]
    metrics: tuple[MetricResult, ...]
    """Of every challenger, those that were measured."""
    shadows: tuple[MetricResult, ...]
    """The same of pairs: one request, both versions, the same seed."""
    slices: tuple[SliceResult, ...]
    """Where there are any, in the order of the adjusted p-values."""
    revisions: tuple[RevisionCount, ...]
    series: tuple[Series, ...]
    pairs: tuple[DifferentPair, ...]
    """The most different first."""

    def picture_ids(self) -> list[str]:
        """Of all assets that its pairs name, each once."""
        kept = [pair.pictures for pair in self.pairs if pair.pictures is not None]
        named = [(one.product, one.before, one.control, one.challenger) for one in kept]
        return list(dict.fromkeys(name for names in named for name in names if name))
