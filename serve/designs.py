"""How an experiment and a rollout are designed: one document each, the same in YAML, over HTTP and
in the database. Says what shall happen; nothing here assigns, measures or decides."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, model_validator

from serve.described import Described
from serve.messages import Expert
from serve.policy import VersionName

BUCKETS = 10_000
"""Every weight and coverage is in hundredths of a percent: so many buckets make the whole."""

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]
Share = Annotated[int, Field(ge=0, le=BUCKETS)]
# Ids of tenants and keys, checked as text only: a design may name one that is made later.
SomeId = Annotated[str, Field(max_length=40, pattern=r"^[^\x00-\x1f\x7f]+$")]
Ids = Annotated[tuple[SomeId, ...], Field(max_length=1000)]

UnitKind = Literal["sku", "collection", "tenant", "user", "request"]
MetricName = Literal[
    "errors", "latency_ms", "gpu_ms", "cost_usd", "outside", "colour", "pattern", "embedding",
    "seam", "face", "accepted", "rejected", "returned", "converted",
]  # fmt: skip
"""What can be compared between arms; `serve.experiments.metrics` says what each one is."""


NOT_BY_EXPERIMENT = ("default", "explicit", "pinned")
"""What receipts say of versions that no experiment chose."""


def _is_no_other_reason(name: str) -> str:
    if name in NOT_BY_EXPERIMENT:
        raise ValueError(f"{name!r} is what receipts say where no experiment chose")
    return name


class Design(Described):
    """Base: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Arm(Design):
    """One of the versions that are compared."""

    name: Annotated[Slug, AfterValidator(_is_no_other_reason)]
    version: VersionName
    weight: Share
    """Hundredths of a percent of the covered units."""


class Namespace(Design):
    """Experiments in one namespace never share a unit: each has buckets of its own."""

    name: Slug
    start: Annotated[int, Field(ge=0, lt=BUCKETS)] = 0
    end: Annotated[int, Field(gt=0, le=BUCKETS)] = BUCKETS
    """Exclusive."""

    @model_validator(mode="after")
    def _is_not_empty(self) -> Self:
        if self.end <= self.start:
            raise ValueError("end must be above start")
        return self


class Audience(Design):
    """Whose requests may take part; what is absent does not matter."""

    tenants: Ids | None = None
    denied_tenants: Ids = ()
    keys: Ids | None = None
    denied_keys: Ids = ()

    def admits(self, tenant_id: str, key_id: str | None) -> bool:
        if tenant_id in self.denied_tenants or key_id in self.denied_keys:
            return False
        is_tenant = self.tenants is None or tenant_id in self.tenants
        return is_tenant and (self.keys is None or key_id in self.keys)


class ShadowDesign(Design):
    """A challenger that paints what it is not asked for: same inputs, same seed, never returned."""

    arm: Slug
    share: Share = 1_000
    """Hundredths of a percent of the requests that take part."""


class ExperimentDesign(Design):
    """Which versions of one expert are compared, on whom, and who gets which."""

    id: Slug
    title: Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    expert: Expert
    unit: UnitKind = "user"
    """What stays on one arm for ever: a SKU, a collection, a tenant, one of your users (the
    request's `unit`), or nothing longer than one request."""
    fallback: UnitKind | None = None
    """The unit of a request that does not name the other; without one it takes no part."""
    salt: Annotated[str, Field(max_length=80, pattern=r"^[^\x00-\x1f\x7f]*$")] = ""
    """Another salt is another draw."""
    arms: Annotated[tuple[Arm, ...], Field(min_length=2, max_length=8)]
    """The first is the control: what the others are compared with, and go back to."""
    coverage: Share = BUCKETS
    """Hundredths of a percent of the units that take part; raising it moves nobody."""
    namespace: Namespace | None = None
    audience: Audience = Audience()
    shadow: ShadowDesign | None = None
    primary: MetricName = "colour"
    """What the report decides by."""
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05

    @model_validator(mode="after")
    def _arms_agree(self) -> Self:
        names = [arm.name for arm in self.arms]
        if len(set(names)) != len(names):
            raise ValueError("two arms have the same name")
        versions = {arm.version for arm in self.arms}
        if len(versions) != len(names):
            raise ValueError("two arms have the same version")
        foreign = sorted(v for v in versions if v.partition("@")[0] != self.expert)
        if foreign:
            raise ValueError(f"no versions of {self.expert}: {', '.join(foreign)}")
        if sum(arm.weight for arm in self.arms) != BUCKETS:
            raise ValueError(f"the weights must add up to {BUCKETS} (hundredths of a percent)")
        if self.shadow is not None and self.shadow.arm not in names[1:]:
            raise ValueError(f"shadow.arm: {self.shadow.arm!r} is no challenger")
        return self

    @property
    def control(self) -> Arm:
        return self.arms[0]

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


class WantedExperiment(ExperimentDesign):
    """A design, and whether it shall begin."""

    start: bool = False
    """At once; otherwise it is a draft that assigns nobody."""

    @property
    def design(self) -> ExperimentDesign:
        return ExperimentDesign.model_validate(self.model_dump(exclude={"start"}))


class Guardrail(Design):
    """How much worse than the control the challenger may be on one metric."""

    metric: MetricName
    margin: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """In the metric's own unit, towards worse; the metric's usual one when absent."""


class Stage(Design):
    """How many units the challenger gets, and what must be known before it gets more."""

    share: Share
    """Hundredths of a percent; 0 is the shadow stage, 10000 the end."""
    shadow: Share = 0
    """Hundredths of a percent of the requests that the challenger paints unasked meanwhile."""
    min_exposures: Annotated[int, Field(ge=0, le=10**9)] = 100
    """Of the challenger, shadow pairs in a shadow stage."""
    min_s: Annotated[float, Field(ge=0, le=90 * 86_400)] = 0.0
    needs: Literal["no_harm", "proof"] = "no_harm"
    """`no_harm`: nothing is proven to be worse, or looks worse by more than its margin. `proof`:
    every guardrail with data is proven to be within its margin."""
    approval: bool = False
    """A person must approve before it is left upwards."""


USUAL_STAGES = (
    Stage(share=0, shadow=1_000, min_exposures=50),
    Stage(share=100, min_exposures=100),
    Stage(share=500, min_exposures=200),
    Stage(share=2_500, min_exposures=500),
    Stage(share=5_000, min_exposures=1_000),
    Stage(share=10_000, min_exposures=0),
)
USUAL_GUARDRAILS = tuple(
    Guardrail(metric=name)
    for name in ("errors", "outside", "colour", "pattern", "seam", "latency_ms", "rejected")
)


class RolloutPlan(Design):
    """How a challenger becomes the default, step by step, or goes back by itself."""

    expert: Expert
    version: VersionName
    """The challenger."""
    against: VersionName | None = None
    """The version it is to replace; the expert's default when absent."""
    unit: UnitKind = "user"
    fallback: UnitKind | None = "request"
    audience: Audience = Audience()
    stages: Annotated[tuple[Stage, ...], Field(min_length=1, max_length=20)] = USUAL_STAGES
    guardrails: Annotated[tuple[Guardrail, ...], Field(max_length=20)] = USUAL_GUARDRAILS
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    """Chance, over the whole rollout, of going back although nothing is worse."""
    is_dry_run: bool = False
    """Decides and says so; moves no weight beyond the first stage."""
    webhook_url: Annotated[str, Field(max_length=4096)] | None = None
    """Is told every decision."""

    @model_validator(mode="after")
    def _stages_rise(self) -> Self:
        shares = [stage.share for stage in self.stages]
        if shares != sorted(shares) or len(set(shares)) != len(shares):
            raise ValueError("stages: every share must be above the one before")
        if shares[-1] != BUCKETS:
            raise ValueError(f"stages: the last share must be {BUCKETS}")
        first = self.stages[0]
        if first.share == 0 and first.shadow == 0 and first.min_exposures:
            raise ValueError("stages: one without share and shadow sees nothing to wait for")
        if self.stages[-1].needs == "proof":
            raise ValueError("stages: the last has no control, against which to prove anything")
        for version in filter(None, (self.version, self.against)):
            if version.partition("@")[0] != self.expert:
                raise ValueError(f"{version} is no version of {self.expert}")
        if self.version == self.against:
            raise ValueError("a version cannot replace itself")
        metrics = [guardrail.metric for guardrail in self.guardrails]
        if len(set(metrics)) != len(metrics):
            raise ValueError("guardrails: a metric is named twice")
        return self
