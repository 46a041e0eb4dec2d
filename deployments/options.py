"""Family configuration to Ray deployment options; pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deployments.bundle import Bundle
from deployments.recipes import Diffusion
from serve.config import (
    Autoscaling,
    Deployed,
    DrainTarget,
    FamilyConfig,
    JobsConfig,
    JudgeConfig,
    Resources,
    RouterConfig,
    SegmenterConfig,
    Selector,
    VersionId,
)

Options = dict[str, Any]
"""Keyword arguments of `rayserve.deployment(...)`."""

# Longer than the longest request, so that scaling down never cuts one off.
GRACEFUL_SHUTDOWN_S = 90.0
MIN_ONGOING_REQUESTS = 4
# Of an added version's replicas: at more use than this there is another.
BUSY = 0.75
REQUEST_ROUTER = "serve.least_loaded:LeastLoadedRouter"


# Of deployments that report load: measured twice a second, told to the controller every second.
# What else Serve averages over this time is their own ongoing requests.
REPORT_INTERVAL_S = 1.0
REPORT_LOOK_BACK_S = 2.5


def _bounds(autoscaling: Autoscaling) -> Options:
    return {
        "min_replicas": autoscaling.min_replicas,
        "max_replicas": autoscaling.max_replicas,
        "target_ongoing_requests": autoscaling.target_ongoing_requests,
    }


def _delays(autoscaling: Autoscaling) -> Options:
    return {
        "upscale_delay_s": autoscaling.upscale_delay_s,
        "downscale_delay_s": autoscaling.downscale_delay_s,
    }


def _scaled(autoscaling: Autoscaling, scaling: Options) -> Options:
    if autoscaling.min_replicas == autoscaling.max_replicas:
        # Nothing to decide, so no caller needs to keep the autoscaler's books on every request.
        return {"num_replicas": autoscaling.min_replicas}
    return scaling


def scaling_by_requests(autoscaling: Autoscaling) -> Options:
    """Serve's own autoscaling, also where there is nothing to decide: for whoever changes bounds
    while it runs, which it takes in place from one of these to another only."""
    return {"autoscaling_config": {**_bounds(autoscaling), **_delays(autoscaling)}}


def scaling_by_load(autoscaling: Autoscaling, versions: tuple[VersionId, ...]) -> Options:
    """For serve/scaling.py, which finds its target in the arguments of a policy that has none;
    as above also where there is nothing to decide.

    Serve's own delays come after every policy: they are 0 here, the target brings ours.
    """
    target = DrainTarget(
        versions=versions, target_drain_s=autoscaling.target_drain_s, **_delays(autoscaling)
    )
    told = {"policy_kwargs": target.model_dump(mode="json")}
    no_delays = {"upscale_delay_s": 0.0, "downscale_delay_s": 0.0}
    return {"autoscaling_config": {**_bounds(autoscaling), **no_delays, "policy": told}}


def _reporting(autoscaling: Autoscaling) -> Options:
    """Of a deployment whose replicas report load: Serve carries reports with the autoscaler's
    books only, so these are kept also where the number of replicas is fixed."""
    config = {
        **_bounds(autoscaling),
        **_delays(autoscaling),
        # Deprecated in favour of variables that Ray 2.60 does not read; without it, 10 s.
        "metrics_interval_s": REPORT_INTERVAL_S,
        "look_back_period_s": REPORT_LOOK_BACK_S,
    }
    return {"autoscaling_config": config}


def _by_requests(autoscaling: Autoscaling) -> Options:
    return _scaled(autoscaling, scaling_by_requests(autoscaling))


def _common(name: str, replicas: Options, resources: Resources) -> Options:
    return {
        "name": name,
        **replicas,
        "ray_actor_options": {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus},
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_S,
    }


def router_options(config: RouterConfig) -> Options:
    return {
        **_common("Router", _reporting(config.autoscaling), config.resources),
        "max_ongoing_requests": config.max_ongoing_requests,
    }


def runner_options(config: JobsConfig) -> Options:
    replicas = Autoscaling(min_replicas=config.runners, max_replicas=config.runners)
    return {
        **_common("JobRunner", _reporting(replicas), config.resources),
        # Nobody asks it anything: it asks the database.
        "max_ongoing_requests": 4,
    }


def segmenter_options(config: SegmenterConfig, masker_id: str) -> Options:
    """Options of one masker's deployment: `Segmenter-classical`."""
    return {
        **_common(f"Segmenter-{masker_id}", _by_requests(config.autoscaling), config.resources),
        # Two full batches: one computing, one collecting.
        "max_ongoing_requests": 2 * config.max_batch_size,
    }


def judge_options(config: JudgeConfig) -> Options:
    return {
        **_common("Judge", _by_requests(config.autoscaling), config.resources),
        # Two full batches: one computing, one collecting.
        "max_ongoing_requests": 2 * config.max_batch_size,
    }


@dataclass(frozen=True, slots=True)
class ExpertGroup:
    """The versions that one deployment's replicas hold: one, or several on one base."""

    name: str
    """Of the deployment: `Expert-eye@1`, or `Experts-klein` for shared replicas."""
    deployed: Deployed
    bundles: tuple[Bundle, ...]


def group_experts(
    family: FamilyConfig, bundles: Mapping[VersionId, Bundle]
) -> tuple[ExpertGroup, ...]:
    """Every expert deployment of the family, in its order."""
    groups: dict[str, ExpertGroup] = {}
    for deployed in family.experts:
        own = deployed.shared is None
        name = f"Expert-{deployed.version}" if own else f"Experts-{deployed.shared}"
        before = groups[name].bundles if name in groups else ()
        together = (*before, bundles[deployed.version])
        groups[name] = ExpertGroup(name, family.replicas_of(deployed), together)
    return tuple(groups.values())


def max_batch_size(group: ExpertGroup) -> int:
    """Requests of one picture that may share a pass."""
    backend = group.bundles[0].backend
    return backend.max_batch_size if isinstance(backend, Diffusion) else 1


def max_ongoing_requests(group: ExpertGroup) -> int:
    """Requests that one replica takes at once."""
    least = max(MIN_ONGOING_REQUESTS, 2 * max_batch_size(group))
    return group.deployed.max_ongoing_requests or least


def expert_options(group: ExpertGroup) -> Options:
    """Options of one expert deployment of the family."""
    return _expert(group, _scaled(group.deployed.autoscaling, expert_scaling(group)))


def expert_scaling(group: ExpertGroup) -> Options:
    """How it is scaled, also where its bounds leave nothing to decide."""
    versions = tuple(bundle.version for bundle in group.bundles)
    return scaling_by_load(group.deployed.autoscaling, versions)


def alone_options(group: ExpertGroup) -> Options:
    """Options of one that is an application of its own, to which our autoscaling policy and the
    load that routers report do not reach: Serve scales it, by the requests at its replicas."""
    return _expert(group, _by_use(group))


def placed_options(options: Options, selector: Selector) -> Options:
    """The same on nodes with these labels only."""
    if not selector:
        return options
    actor = {**options["ray_actor_options"], "label_selector": dict(selector)}
    return {**options, "ray_actor_options": actor}


def door_options() -> Options:
    """Of what stands before an added version and does nothing."""
    return _common("Door", {"num_replicas": 1}, Resources(num_cpus=0.0))


def _expert(group: ExpertGroup, replicas: Options) -> Options:
    return {
        **_common(group.name, replicas, group.deployed.resources),
        "max_ongoing_requests": max_ongoing_requests(group),
        "request_router_config": {"request_router_class": REQUEST_ROUTER},
    }


def _by_use(group: ExpertGroup) -> Options:
    """Routers let no more to a replica than keep it busy (`serve.permits`), and the rest waits at
    them: nearly as many as that at each of them says that more would have work."""
    autoscaling = group.deployed.autoscaling
    per_replica = max_ongoing_requests(group) if max_batch_size(group) > 1 else 1
    busy = autoscaling.model_copy(update={"target_ongoing_requests": BUSY * per_replica})
    options = _by_requests(busy)
    if "autoscaling_config" in options:
        # Also where none is kept: it has shown once that it starts.
        first = {"initial_replicas": max(1, autoscaling.min_replicas)}
        options = {"autoscaling_config": {**options["autoscaling_config"], **first}}
    return options
