"""The whole graph on one screen: Router -> Segmenter -> one deployment per expert version, and
JobRunner -> Router."""

from pathlib import Path

from pydantic import ConfigDict
from ray.serve import Application

from deployments.bundle import load_family
from deployments.expert import ExpertReplica
from deployments.judge_models import load_judge
from deployments.judging import JudgeReplica
from deployments.options import (
    expert_options,
    group_experts,
    judge_options,
    router_options,
    runner_options,
    segmenter_options,
)
from deployments.segmentation import SegmenterReplica
from serve.added import build_deployment
from serve.config import AddedPlaces, ReplicaPlan
from serve.described import Described
from serve.job_runner import JobRunner
from serve.ray_meter import RayMeter
from serve.revision import wait_for_revision
from serve.router import IngressRouter
from serve.settings import Settings


class AppArgs(Described):
    """Arguments of the application, in a Serve config file or after `serve run`."""

    model_config = ConfigDict(extra="forbid")

    family: Path | None = None
    """The family file; `SM4LL_FAMILY` or the shipped one when absent."""
    revision: str | None = None
    """Build from no other documents than these (serve/revision.py), and wait until they are there:
    a mounted ConfigMap follows late. None: from those that are there."""
    added: AddedPlaces = AddedPlaces()
    """Where versions that are added while it runs may be."""


def build_app(args: AppArgs) -> Application:
    """The application: `serve run serve.app:build_app family=configs/family.yaml`.

    Raises:
        ConfigError: the family or one of its bundles cannot be used.
    """
    # Not resolved: a mounted ConfigMap's files are links into a folder that its next version takes
    # away, and replicas look for what lies beside a bundle when they start.
    path = (args.family or Settings().family).absolute()
    if args.revision is not None:
        wait_for_revision(path, args.revision)
    family, bundles = load_family(path)
    segmenters = {
        masker_id: build_deployment(
            SegmenterReplica, segmenter_options(family.segmenter, masker_id)
        ).bind(family.segmenter, bundle.masker, bundle.home, family.weights, RayMeter)
        for masker_id, bundle in {bundle.masker.id: bundle for bundle in bundles.values()}.items()
    }
    experts = {}
    for group in group_experts(family, bundles):
        plan = ReplicaPlan(
            name=group.name,
            weights=family.weights,
            num_gpus=group.deployed.resources.num_gpus,
        )
        handle = build_deployment(ExpertReplica, expert_options(group)).bind(
            group.bundles, plan, open_meter=RayMeter
        )
        experts.update(dict.fromkeys((bundle.version for bundle in group.bundles), handle))
    judge = None
    if family.judge is not None:
        judge = build_deployment(JudgeReplica, judge_options(family.judge)).bind(
            family.judge, *load_judge(path, family.judge), family.weights
        )
    runner = build_deployment(JobRunner, runner_options(family.jobs)).bind(
        family, bundles, args.added
    )
    return build_deployment(IngressRouter, router_options(family.router)).bind(
        family, bundles, segmenters, experts, runner, judge
    )
