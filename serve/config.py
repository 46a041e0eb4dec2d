"""What is deployed, as frozen pydantic models read from YAML.

Defaults live here and nowhere else; the YAML holds what differs.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from serve.described import Described
from serve.errors import ConfigError
from serve.messages import EXPERTS, Expert

VersionId = Annotated[str, Field(pattern=rf"^({'|'.join(EXPERTS)})@[a-z0-9][a-z0-9._-]{{0,62}}$")]
"""`expert@name`, for example `eye@1`."""


class Config(Described):
    """Base of every configuration model: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


ConfigT = TypeVar("ConfigT", bound=Config)


def load_yaml(path: Path, model: type[ConfigT]) -> ConfigT:
    """Read one YAML file into a model.

    Raises:
        ConfigError: the file is missing, is not a mapping or does not fit; names file and key.
    """
    try:
        data: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such file") from exc
    except (yaml.YAMLError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: not readable as YAML: {exc}") from exc
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: must be a mapping, got {type(data).__name__}")
    try:
        return model.model_validate(data)
    except ValidationError as exc:
        problems = "; ".join(
            f"{'.'.join(map(str, error['loc'])) or 'file'}: {error['msg']}"
            for error in exc.errors()
        )
        raise ConfigError(f"{path}: {problems}") from exc


class Autoscaling(Config):
    """How many replicas a deployment may have, and when it gets another."""

    min_replicas: NonNegativeInt = 1
    """0 frees the memory while idle and costs the first caller a cold start."""
    max_replicas: PositiveInt = Field(default=2, le=1000)  # Serve's controller holds each
    target_drain_s: PositiveFloat = 10.0
    """Experts get the replicas that work off, in this time, all that runs and waits for them in
    every router and in the database."""
    target_ongoing_requests: PositiveFloat = 2.0
    """What is no expert gets replicas while the mean of running and waiting requests is above
    this; so does an expert of whose work nothing is reported."""
    upscale_delay_s: NonNegativeFloat = 2.0
    """More must have been needed for so long; a burst is seen within about 2 s before that."""
    downscale_delay_s: NonNegativeFloat = 300.0
    """Less must have been needed for so long; also before the last replica goes."""

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas is below min_replicas")
        return self


class DrainTarget(Config):
    """What an expert deployment's options tell the autoscaling policy; see serve/scaling.py."""

    versions: tuple[str, ...]
    """Whose work its replicas do."""
    target_drain_s: PositiveFloat
    upscale_delay_s: NonNegativeFloat
    downscale_delay_s: NonNegativeFloat


class Resources(Config):
    """What Ray reserves for one replica. Bookkeeping only: Ray enforces none of it."""

    num_cpus: NonNegativeFloat = 0.1
    num_gpus: NonNegativeFloat = 0.0


Selector = Mapping[str, str]
"""Labels of Ray's nodes, as Ray's `label_selector` has them: a value, or `in(a,b)`."""


class AddedPlaces(Config):
    """Where the replicas of versions that are added to a running cluster may be; anywhere when
    absent, also where routers need the processors."""

    cpu: Selector = {}
    gpu: Selector = {}
    """Of those that need a GPU."""
    segmenter: Selector = {}
    """Of a masker that the family has not."""


class Deployed(Config):
    """How the replicas of one deployment run."""

    autoscaling: Autoscaling = Autoscaling()
    resources: Resources = Resources()
    max_ongoing_requests: PositiveInt | None = None
    """Per replica; when absent two full batches, and at least 4: one on the device, the next
    behind it."""


class SharedReplicas(Deployed):
    """One deployment whose replicas hold one base and the adapters of several versions."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")


class DeployedVersion(Deployed):
    """One expert version that runs in the cluster."""

    version: VersionId
    shared: str | None = None
    """Name of the shared replicas it runs on, instead of its own."""
    allow_noncommercial: bool = False
    """Serve it although its licence forbids commercial use."""

    @model_validator(mode="after")
    def _shared_brings_its_own(self) -> Self:
        own = self.model_fields_set & {"autoscaling", "resources", "max_ongoing_requests"}
        if self.shared is not None and own:
            raise ValueError(f"{', '.join(sorted(own))} belongs to the shared replicas")
        return self

    @property
    def expert(self) -> Expert:
        expert: Any = self.version.split("@")[0]
        return expert  # type: ignore[no-any-return]  # the pattern allows nothing else


HostName = Annotated[str, Field(pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)*$", max_length=253)]
Port = Annotated[int, Field(ge=1, le=65_535)]


class FetchConfig(Config):
    """Pictures by URL. The router asks for them itself and goes through no proxy."""

    enabled: bool = True
    schemes: tuple[Literal["https", "http"], ...] = Field(default=("https",), min_length=1)
    ports: tuple[Port, ...] = Field(default=(443, 80), min_length=1)
    max_redirects: NonNegativeInt = 3
    """Each is checked like the URL itself, and none may lead from https to http."""
    timeout_s: PositiveFloat = 10.0
    """For one picture, redirects and names included; within the request's own deadline."""
    connect_timeout_s: PositiveFloat = 3.0
    """For each address of a host; the next is tried then."""
    allowed_hosts: tuple[HostName, ...] | None = None
    """These hosts and those below them, redirects included; every public host when absent."""
    allow_private: bool = False
    """Also hosts in 10/8, 172.16/12, 192.168/16 and fc00::/7. Only where every caller may read
    all that these networks serve: cluster services are among them. Loopback, link-local and
    cloud metadata stay closed."""


class RouterConfig(Config):
    """The ingress deployment."""

    autoscaling: Autoscaling = Autoscaling(target_ongoing_requests=8.0, upscale_delay_s=10.0)
    resources: Resources = Resources()
    max_ongoing_requests: PositiveInt = 256
    num_imaging_threads: PositiveInt = 2
    """Threads for decode, paste and encode in each replica; about the cores it may use."""
    max_body_mib: PositiveInt = 80
    max_image_mib: PositiveInt = 32
    max_megapixels: PositiveInt = 64
    max_side_px: PositiveInt = 16_384
    default_timeout_s: PositiveFloat = 60.0
    """A request that takes longer is stopped everywhere and answered 504."""
    product_cache_mib: NonNegativeInt = 64
    """Products kept as experts are given them, by tenant and content, in each router."""
    region_cache_mib: NonNegativeInt = 64
    """The same of regions and silhouettes: the segmenter is not asked again. About 40 persons."""
    max_in_flight_per_version: PositiveInt | None = None
    """Requests that one router replica may have at the replicas of a version. When absent, its
    part of what keeps the running ones at work: one each, at least 2; two full batches each
    where requests share a pass. What is there is beyond fair order: more makes others wait for
    whole passes, fewer idles devices."""
    max_waiting_per_version: NonNegativeInt = 256
    """Requests that may wait in one router replica before more are answered 503."""
    batch_floor: float = Field(default=0.1, gt=0, lt=1)
    """Fraction of the GPU-seconds that batch work gets while interactive work waits too."""
    fetch: FetchConfig = FetchConfig()
    webhooks: FetchConfig = FetchConfig(timeout_s=15.0)
    """The same rules for messages to receivers; no redirect is followed at all."""
    evidence_retention_s: PositiveFloat = 400 * 86_400.0
    """How long what experiments saw is kept, and what was said about it: this year's season and
    the one it is compared with."""
    max_named_tenants: NonNegativeInt = 20
    """That a router's metrics tell apart, the busiest; each costs about fifty series."""


class JobsConfig(Config):
    """How durable jobs are run."""

    runners: PositiveInt = 1
    """One starts some hundred jobs a second; a second one takes over at once what the first
    would leave for a lease when its machine dies."""
    resources: Resources = Resources()
    lease_s: PositiveFloat = 60.0
    """A silent runner's jobs go to others after this; heartbeats come four times as often."""
    max_attempts: PositiveInt = 5
    """A job that has failed so often is parked."""
    max_in_flight: PositiveInt = 256
    """Jobs that one runner may have at the routers, all versions together."""
    poll_s: PositiveFloat = 0.5
    """How often the database is asked for work while there was none."""
    run_timeout_s: PositiveFloat = 300.0
    """One attempt that takes longer is stopped and counts as failed."""


class SegmenterConfig(Config):
    """The shared preprocessing deployment."""

    autoscaling: Autoscaling = Autoscaling(target_ongoing_requests=4.0, upscale_delay_s=10.0)
    resources: Resources = Resources()
    max_batch_size: PositiveInt = 4
    batch_wait_s: NonNegativeFloat = 0.005
    cache_mib: PositiveInt = 128
    """Person analyses kept by content hash in each replica."""


class JudgeConfig(Config):
    """Models that judge the pictures of experiments, in a deployment of their own."""

    models: Path = Path("judge.yaml")
    """Which ones, relative to this file."""
    autoscaling: Autoscaling = Autoscaling(min_replicas=1, max_replicas=1)
    resources: Resources = Resources()
    max_batch_size: PositiveInt = 8
    batch_wait_s: NonNegativeFloat = 0.05
    """Nobody waits for what it says."""


class WeightsConfig(Config):
    """How weights reach a replica."""

    local_files_only: bool = False
    """Never ask the hub: weights are on disk already, or the replica does not start."""
    cache_dir: Path | None = None
    """Where hub repositories are kept; the hub library's own place when absent."""


class ReplicaPlan(Config):
    """What one expert deployment's replicas are told besides their bundles."""

    name: str
    """Of the deployment, for messages."""
    weights: WeightsConfig = WeightsConfig()
    num_gpus: NonNegativeFloat = 0.0
    """Below 1: the share of the device's memory that one replica may hold."""


class PricingConfig(Config):
    """What usage costs, where somebody wants to see it in money."""

    usd_per_gpu_second: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    """None: usage is shown in GPU-seconds alone."""


Promise = Annotated[float, Field(ge=0.95, lt=1)]
"""Below 0.95 even a total failure would not burn the budget as fast as what pages somebody."""


class Objective(Config):
    """What whoever calls one expert may rely on; jobs are outside of it."""

    availability: Promise = 0.995
    """Share of try-ons that do not fail because of us (5xx, full queues and missed deadlines
    among them). What the caller must change, and who leaves, count on neither side."""
    latency_s: PositiveFloat = 2.0
    """A try-on that succeeds within this is a fast one, from arrival to answer. One of the bounds
    of `sm4ll_tryon_duration_seconds`: between them nothing is known."""
    latency_share: Promise = 0.95
    """Share of the successful try-ons that are fast."""


class SloConfig(Objective):
    """The objectives: of all experts, and where one differs."""

    experts: Mapping[Expert, Objective] = {}
    """What is not said here of an expert is as for all."""
    window_days: Literal[28, 30] = 30
    """What the objectives are counted over."""
    min_bad_events: PositiveInt = 10
    """Fewer within an alert's long window alert nobody: one failure of three is no outage."""

    def of(self, expert: Expert) -> Objective:
        own = self.experts.get(expert, Objective())
        return Objective.model_validate(
            {
                name: getattr(own if name in own.model_fields_set else self, name)
                for name in Objective.model_fields
            }
        )


class FamilyConfig(Config):
    """What one cluster serves."""

    bundles_dir: Path = Path("experts")
    """Where the bundles lie, relative to this file."""
    router: RouterConfig = RouterConfig()
    jobs: JobsConfig = JobsConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    """Of every masker that the bundles name; each has its own deployment."""
    judge: JudgeConfig | None = None
    """Evidence by models; none when absent."""
    weights: WeightsConfig = WeightsConfig()
    pricing: PricingConfig = PricingConfig()
    slo: SloConfig = SloConfig()
    """What alerts are rendered from, with `sm4ll observability render`."""
    shared: tuple[SharedReplicas, ...] = ()
    experts: tuple[DeployedVersion, ...] = Field(min_length=1)
    """In order: the first version of an expert is the one a request gets by default."""

    @model_validator(mode="after")
    def _versions_are_unique(self) -> Self:
        seen = [deployed.version for deployed in self.experts]
        twice = sorted({version for version in seen if seen.count(version) > 1})
        if twice:
            raise ValueError(f"listed twice: {', '.join(twice)}")
        return self

    @model_validator(mode="after")
    def _shared_replicas_are_listed(self) -> Self:
        names = [shared.name for shared in self.shared]
        used = {deployed.shared for deployed in self.experts if deployed.shared is not None}
        if len(set(names)) != len(names):
            raise ValueError("two shared replicas have the same name")
        if used != set(names):
            wrong = ", ".join(sorted(used ^ set(names)))
            raise ValueError(f"shared: named on one side only: {wrong}")
        return self

    def replicas_of(self, deployed: DeployedVersion) -> Deployed:
        """How the replicas that hold this version run: its own, or those it shares."""
        if deployed.shared is None:
            return deployed
        return next(shared for shared in self.shared if shared.name == deployed.shared)
