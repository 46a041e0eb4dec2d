"""Who wants GPU memory, and how much: the family's deployments with what was measured of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from deployments.bundle import Bundle, Size
from deployments.measured import Footprint, find_footprint, load_footprints
from deployments.packing.placement import UNITS, Placement
from deployments.recipes import Diffusion
from serve.config import Autoscaling, Deployed, FamilyConfig, VersionId
from serve.errors import ConfigError, PackingImpossible


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica takes of one kind of GPU."""

    gib: float
    """Measured peak of loading or of the largest batch that pays, and the process beside it."""
    units: int
    """Part of the GPU in 1/10,000, rounded up; UNITS when it gets all of it."""
    batch: int = 1


@dataclass(frozen=True, slots=True)
class Demand:
    """One deployment that runs on GPUs."""

    name: str
    """The version, or the name of the shared replicas."""
    versions: tuple[VersionId, ...]
    num_replicas: int
    needs: Mapping[str, Need]
    """By kind of GPU: only those where it was measured and fits."""


@dataclass(frozen=True, slots=True)
class CpuReplicas:
    """One deployment that needs no GPU."""

    name: str
    backend: str
    num_replicas: int
    num_cpus: float


@dataclass(frozen=True, slots=True)
class Demands:
    """Everything the family runs."""

    gpu: tuple[Demand, ...]
    cpu: tuple[CpuReplicas, ...]


def collect_demands(
    family: FamilyConfig, bundles: Mapping[VersionId, Bundle], placement: Placement
) -> Demands:
    """What has to be packed.

    Raises:
        PackingImpossible: a version was not measured on these GPUs, or is larger than any of them.
        ConfigError: the placement names a deployment that the family has not.
    """
    groups: dict[str, list[Bundle]] = {}
    deployed_as: dict[str, Deployed] = {}
    for deployed in family.experts:
        name = deployed.shared or deployed.version
        groups.setdefault(name, []).append(bundles[deployed.version])
        deployed_as[name] = family.replicas_of(deployed)
    _check_wanted(placement, groups)
    gpu: list[Demand] = []
    cpu: list[CpuReplicas] = []
    problems: list[PackingImpossible] = []
    for name, members in groups.items():
        num_replicas = _num_replicas(name, deployed_as[name].autoscaling, placement)
        if not isinstance(members[0].backend, Diffusion):
            num_cpus = deployed_as[name].resources.num_cpus
            cpu.append(CpuReplicas(name, members[0].backend.kind, num_replicas, num_cpus))
            continue
        try:
            needs = _needs(members, placement)
        except PackingImpossible as exc:
            problems.append(exc)
            continue
        versions = tuple(bundle.version for bundle in members)
        gpu.append(Demand(name, versions, num_replicas, needs))
    if problems:
        raise _all_of(problems)
    return Demands((*gpu, *_segmenters(family, bundles, placement)), tuple(cpu))


def _check_wanted(placement: Placement, groups: Mapping[str, list[Bundle]]) -> None:
    unknown = sorted(set(placement.wanted) - set(groups))
    if unknown:
        raise ConfigError(
            f"placement: wanted: the family deploys no {', '.join(unknown)}; "
            f"it has {', '.join(groups)}"
        )


def _num_replicas(name: str, scaling: Autoscaling, placement: Placement) -> int:
    default = scaling.max_replicas if placement.replicas == "max" else scaling.min_replicas
    return placement.wanted.get(name, default)


def _all_of(problems: list[PackingImpossible]) -> PackingImpossible:
    remedies = dict.fromkeys(problem.remedy for problem in problems)
    return PackingImpossible(
        "\n".join(problem.detail for problem in problems), remedy="\n".join(remedies)
    )


def _needs(members: list[Bundle], placement: Placement) -> Mapping[str, Need]:
    """By kind of GPU that every one of these versions was measured on and fits."""
    footprints = {bundle.version: load_footprints(bundle) for bundle in members}
    needs: dict[str, Need] = {}
    too_large: list[tuple[float, str]] = []
    for kind, gib in placement.kinds.items():
        known = [find_footprint(footprints[bundle.version], kind) for bundle in members]
        measured = [footprint for footprint in known if footprint and footprint.peaks]
        if len(measured) < len(members):
            continue
        # What the driver gave at the measurement, where that is less than the inventory says.
        real_gib = min(gib, *(footprint.device_gib for footprint in measured))
        need = _need(members, measured, real_gib, placement)
        usable = placement.usable_units(gib)
        if need.units <= usable:
            is_heavy = need.units > placement.whole_gpu_above * UNITS
            needs[kind] = Need(need.gib, UNITS if is_heavy else need.units, need.batch)
            continue
        usable_gib = real_gib * usable / UNITS
        short_gib = need.gib - usable_gib
        is_loading = _loading_gib(measured) > _painting_gib(members, measured, 1)
        what = "while it loads" if is_loading else f"for {_size_text(members)} at batch 1"
        detail = (
            f"{_names(members)} needs {need.gib:.2f} GiB {what}; "
            f"{kind} has {usable_gib:.2f} of its {real_gib:.2f} to give: {short_gib:.2f} GiB short"
        )
        too_large.append((short_gib, detail))
    if needs:
        return needs
    if too_large:
        raise PackingImpossible(min(too_large)[1], remedy=_smaller(members[0]))
    raise _not_measured(members, footprints, placement)


def _need(
    members: list[Bundle], footprints: list[Footprint], gib: float, placement: Placement
) -> Need:
    """At the largest batch that pays and fits; at batch 1 where nothing fits."""
    batch = max(_batch(bundle, known) for bundle, known in zip(members, footprints, strict=True))
    while True:
        needed_gib = _needed_gib(members, footprints, batch)
        # 1e-9: a need of exactly one unit is one unit, whatever its division rounds to.
        units = math.ceil(needed_gib / gib * UNITS - 1e-9)
        if batch == 1 or units <= placement.usable_units(gib):
            return Need(needed_gib, units, batch)
        batch -= 1


def _batch(bundle: Bundle, footprint: Footprint) -> int:
    assert isinstance(bundle.backend, Diffusion)
    limit = bundle.backend.max_batch_size
    tiers = {bundle.tiers.draft, bundle.tiers.normal, bundle.tiers.high}
    return max(footprint.best_batch(*largest_size(bundle), steps, limit) for steps in tiers)


def _needed_gib(members: list[Bundle], footprints: list[Footprint], batch: int) -> float:
    """What painting needs or what loading needs, whichever is more, and the process: a replica's
    cap holds from its first byte."""
    context_gib = max(footprint.context_gib for footprint in footprints)
    painting_gib = _painting_gib(members, footprints, batch)
    return max(painting_gib, _loading_gib(footprints)) + context_gib


def _painting_gib(members: list[Bundle], footprints: list[Footprint], batch: int) -> float:
    """One base, every adapter, the hungriest pass among the versions, the products it will keep."""
    passes_gib = 0.0
    for bundle, footprint in zip(members, footprints, strict=True):
        peak_gib = footprint.predict_peak_gib(*largest_size(bundle), batch)
        assert peak_gib is not None
        passes_gib = max(passes_gib, peak_gib - footprint.adapter_gib)
    adapters_gib = sum(footprint.adapter_gib for footprint in footprints)
    return passes_gib + adapters_gib + _products_gib(members[0])


def _loading_gib(footprints: list[Footprint]) -> float:
    return max(footprint.load_peak_gib for footprint in footprints)


def _products_gib(bundle: Bundle) -> float:
    """A profile sees few products; a replica keeps as many as it may."""
    assert isinstance(bundle.backend, Diffusion)
    return bundle.backend.product_cache_mib / 1024


def largest_size(bundle: Bundle) -> Size:
    """The largest crop the version can be asked for."""
    square = (bundle.crop.size_px, bundle.crop.size_px)
    return max(bundle.crop.sizes or (square,), key=lambda size: size[0] * size[1])


def _segmenters(
    family: FamilyConfig, bundles: Mapping[VersionId, Bundle], placement: Placement
) -> tuple[Demand, ...]:
    """Maskers that the family gives a GPU: as much as it declares, since nobody measured them."""
    declared = family.segmenter.resources.num_gpus
    if not declared:
        return ()
    # One deployment per masker, whichever versions name it.
    ids = dict.fromkeys(bundles[deployed.version].masker.id for deployed in family.experts)
    units = min(UNITS, math.ceil(declared * UNITS - 1e-9))
    return tuple(
        Demand(
            name=f"Segmenter-{masker_id}",
            versions=(),
            num_replicas=_num_replicas("", family.segmenter.autoscaling, placement),
            needs={k: Need(gib * units / UNITS, units) for k, gib in placement.kinds.items()},
        )
        for masker_id in ids
    )


def _names(members: list[Bundle]) -> str:
    return " + ".join(bundle.version for bundle in members)


def _size_text(members: list[Bundle]) -> str:
    width_px, height_px = max((largest_size(bundle) for bundle in members), key=math.prod)
    return f"{width_px}x{height_px}"


def _smaller(bundle: Bundle) -> str:
    helps = ["a larger GPU in the placement"]
    backend = bundle.backend
    if isinstance(backend, Diffusion):
        if not backend.prompt.drop_text_encoders:
            helps.append("prompt.drop_text_encoders: true")
        if not backend.speed.fp8:
            helps.append("speed.fp8: true")
    helps.append("smaller crop.sizes")
    return f"{', or '.join(helps)}; then `sm4ll profile {bundle.version}` again"


def _not_measured(
    members: list[Bundle],
    footprints: Mapping[VersionId, tuple[Footprint, ...]],
    placement: Placement,
) -> PackingImpossible:
    kinds = " or ".join(placement.kinds)
    lines = []
    for bundle in members:
        devices = [known.device for known in footprints[bundle.version] if known.peaks]
        where = f"was measured on {', '.join(devices)} only" if devices else "was never measured"
        if not set(devices) & set(placement.kinds):
            lines.append(f"{bundle.version} {where}: what it needs on {kinds} is not known")
    if not lines:
        lines = [f"{_names(members)} were not measured on one and the same kind of GPU"]
    command = f"`sm4ll profile {' '.join(bundle.version for bundle in members)}`"
    return PackingImpossible("\n".join(lines), remedy=f"on a machine with {kinds}: {command}")
