"""The Serve config that KubeRay hands to the cluster: the application and its deployments.

Overrides win over what the application says of itself, and replace whole dictionaries: each starts
from what deployments/options.py gives. Bounds are written out here, so that an edit of them is one
of this document alone: Serve changes them in the running application.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deployments.options import (
    Options,
    expert_options,
    expert_scaling,
    group_experts,
    judge_options,
    router_options,
    runner_options,
    scaling_by_requests,
    segmenter_options,
)
from k8s.rendering.pools import PlannedCluster
from k8s.rendering.shape import ClusterShape
from k8s.rendering.yaml_text import Line
from serve.config import FamilyConfig
from serve.errors import ConfigError
from serve.settings import CONFIGS_DIR

POOL_LABEL = "sm4ll.dev/pool"
"""Of pods, and of Ray's nodes: where a deployment's replicas may run."""
FAMILY_FILE = "/etc/sm4ll/family.yaml"
SERVE_PORT = 8000


def build_serve_config(
    cluster: PlannedCluster, shape: ClusterShape, revision: str
) -> dict[str, Any]:
    """
    Args:
        revision: of the documents that the application is built from (serve/revision.py).
    """
    shipped = read_shipped()
    (application,) = shipped["applications"]
    return {
        "proxy_location": "EveryNode",
        "http_options": {**shipped["http_options"], "host": "0.0.0.0", "port": SERVE_PORT},
        "logging_config": shipped["logging_config"],
        "applications": [
            {
                **application,
                "args": {
                    "family": FAMILY_FILE,
                    "revision": revision,
                    "added": _added_places(cluster),
                },
                "deployments": [
                    _override(options, cluster, shape) for options in _all_options(cluster)
                ],
            }
        ],
    }


def read_shipped() -> dict[str, Any]:
    """configs/serve.yaml, what a cluster on one machine is given."""
    shipped: dict[str, Any] = yaml.safe_load((CONFIGS_DIR / "serve.yaml").read_text())
    return shipped


def longest_request_s(family: FamilyConfig, source: Path | str = "family") -> float:
    """How long Serve lets a request run; whoever stops waits so long.

    Raises:
        ConfigError: our own limit is not below Serve's, whose answer says less.
    """
    limit_s = float(read_shipped()["http_options"]["request_timeout_s"])
    if family.router.default_timeout_s >= limit_s:
        raise ConfigError(
            f"{source}: router.default_timeout_s is {family.router.default_timeout_s:g}, and Serve "
            f"cuts a request off after {limit_s:g} s (request_timeout_s in configs/serve.yaml)"
        )
    return limit_s


def _all_options(cluster: PlannedCluster) -> Iterator[Options]:
    """Of every deployment of the graph, as serve/app.py builds it, but for fixed numbers: where an
    override of autoscaling comes or goes, Serve builds the application anew, and so replaces every
    replica (ray.serve._private.deploy_utils.get_app_code_version, 2.60)."""
    family, bundles = cluster.family, cluster.bundles
    yield router_options(family.router)
    yield runner_options(family.jobs)
    for masker_id in dict.fromkeys(bundle.masker.id for bundle in bundles.values()):
        segmenter = family.segmenter
        scaling = scaling_by_requests(segmenter.autoscaling)
        yield {**segmenter_options(segmenter, masker_id), **scaling}
    if family.judge is not None:
        yield {**judge_options(family.judge), **scaling_by_requests(family.judge.autoscaling)}
    for group in group_experts(family, bundles):
        yield {**expert_options(group), **expert_scaling(group)}


def _override(options: Options, cluster: PlannedCluster, shape: ClusterShape) -> dict[str, Any]:
    name = options["name"]
    return {
        "name": name,
        "autoscaling_config": options["autoscaling_config"],
        **_surge(name, cluster, shape),
        "ray_actor_options": Line(_actor_options(options, cluster)),
    }


def _surge(name: str, cluster: PlannedCluster, shape: ClusterShape) -> Mapping[str, Any]:
    """Start the new replica before the old one stops: only where there is room for both, since a
    rollout waits for ever for a place that never comes."""
    has_room = all(cluster.pool(pool).spare_pods for pool in cluster.places[name])
    return {"max_surge_percent": shape.surge_percent} if has_room else {}


def _actor_options(options: Options, cluster: PlannedCluster) -> dict[str, Any]:
    name = options["name"]
    pools = [cluster.pool(pool) for pool in cluster.places[name]]
    if name == "Judge" and options["ray_actor_options"]["num_gpus"]:
        raise ConfigError(
            "judge.resources.num_gpus: the packing plan has no place for the judge's models; "
            "they run on CPUs here (num_gpus: 0)"
        )
    names = [pool.name for pool in pools]
    return {
        **options["ray_actor_options"],
        "num_cpus": cluster.num_cpus[name],
        "num_gpus": cluster.num_gpus.get(name, 0),
        "label_selector": _select(names),
    }


def _added_places(cluster: PlannedCluster) -> dict[str, Any]:
    """Not on the routers' nodes, which have processors to spare and no right to be slowed down."""
    places: dict[str, Any] = {"cpu": Line(_select(["light-cpu"]))}
    if with_gpus := [pool.name for pool in cluster.pools if pool.gpu is not None]:
        places["gpu"] = Line(_select(with_gpus))
    return {**places, "segmenter": Line(_select(["segment"]))}


def _select(pools: Sequence[str]) -> dict[str, str]:
    return {POOL_LABEL: pools[0] if len(pools) == 1 else f"in({','.join(pools)})"}
