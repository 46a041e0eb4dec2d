"""How many pods of a pool may be taken away at once by whoever drains nodes."""

from k8s.rendering.containers import PART_OF
from k8s.rendering.pools import PlannedCluster
from k8s.rendering.serve_config import POOL_LABEL
from k8s.rendering.yaml_text import Document


def disruption_budgets(cluster: PlannedCluster) -> list[Document]:
    """One for each pool that always has two pods or more.

    Whole numbers of `minAvailable` only: a RayCluster has no scale that percentages, or
    `maxUnavailable`, could be taken of (kuberay#2662). A pod that is not ready serves nobody, and
    may always go.
    """
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": f"sm4ll-{pool.name}", "labels": dict(PART_OF)},
            "spec": {
                "minAvailable": pool.min_pods - 1,
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": {"matchLabels": {POOL_LABEL: pool.name}},
            },
        }
        for pool in cluster.pools
        if pool.min_pods > 1
    ]
