"""Family configuration to Ray deployment options; pure."""

from typing import Any

from serve.config import Autoscaling, DeployedVersion, Resources, RouterConfig, SegmenterConfig

Options = dict[str, Any]
"""Keyword arguments of `rayserve.deployment(...)`."""

# Longer than the longest request, so that scaling down never cuts one off.
GRACEFUL_SHUTDOWN_S = 90.0


def _replicas(autoscaling: Autoscaling) -> Options:
    if autoscaling.min_replicas == autoscaling.max_replicas:
        # Nothing to decide, so no caller needs to keep the autoscaler's books on every request.
        return {"num_replicas": autoscaling.min_replicas}
    config = {
        "min_replicas": autoscaling.min_replicas,
        "max_replicas": autoscaling.max_replicas,
        "target_ongoing_requests": autoscaling.target_ongoing_requests,
        "upscale_delay_s": autoscaling.upscale_delay_s,
        "downscale_delay_s": autoscaling.downscale_delay_s,
    }
    return {"autoscaling_config": config}


def _common(name: str, autoscaling: Autoscaling, resources: Resources) -> Options:
    return {
        "name": name,
        **_replicas(autoscaling),
        "ray_actor_options": {"num_cpus": resources.num_cpus, "num_gpus": resources.num_gpus},
        "graceful_shutdown_timeout_s": GRACEFUL_SHUTDOWN_S,
    }


def router_options(config: RouterConfig) -> Options:
    return {
        **_common("Router", config.autoscaling, config.resources),
        "max_ongoing_requests": config.max_ongoing_requests,
    }


def segmenter_options(config: SegmenterConfig) -> Options:
    return {
        **_common("Segmenter", config.autoscaling, config.resources),
        # Two full batches: one computing, one collecting.
        "max_ongoing_requests": 2 * config.max_batch_size,
    }


def expert_options(deployed: DeployedVersion) -> Options:
    """Options of one version's deployment, named after it: `Expert-eye@1`."""
    return {
        **_common(f"Expert-{deployed.version}", deployed.autoscaling, deployed.resources),
        "max_ongoing_requests": deployed.max_ongoing_requests,
    }
