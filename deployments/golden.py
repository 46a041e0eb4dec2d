"""Whether a version still paints what it painted when it was frozen.

A replica asks before it is ready; `sm4ll experts freeze` records.
"""

import datetime as dt
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from deployments.backends.base import Backend
from deployments.backends.environment import describe_environment
from deployments.bundle import Bundle
from deployments.golden_set import (
    GoldenRecord,
    GoldenSample,
    GoldenSet,
    Tolerance,
    freeze_remedy,
    golden_folder,
    load_golden,
    write_golden,
)
from deployments.recipes import Diffusion, HostedConfig, ProductAsIpAdapter
from deployments.sources import ModelSource
from deployments.weights import digest_weights
from serve.errors import BundleInvalid, NotSupported, Sm4llError
from serve.messages import ExpertRequest, UInt8Array


@dataclass(frozen=True, slots=True)
class Drift:
    """How far one picture is from another inside the region."""

    max_abs_diff: int
    mean_abs_diff: float

    def words(self, tolerance: Tolerance, is_elsewhere: bool) -> str:
        """What is above the tolerance, with both numbers; empty when nothing is."""
        mean, limit = self.mean_abs_diff, tolerance.mean_abs_diff
        if is_elsewhere:
            limit = tolerance.other_device
        elif self.max_abs_diff > tolerance.max_abs_diff:
            sign = ">" if mean > limit else "<="
            return (
                f"max diff {self.max_abs_diff} > {tolerance.max_abs_diff}, "
                f"mean {mean:.2f} {sign} {limit:g}"
            )
        return f"mean diff {mean:.2f} > {limit:g}" if mean > limit else ""


def check_golden(bundle: Bundle, backend: Backend) -> None:
    """Let a loaded backend paint the golden samples again; does nothing where there are none.

    Raises:
        BundleInvalid: the bundle or its weights are not those that were frozen, or a picture
            drifted; says which and by how much.
    """
    golden = load_golden(bundle)
    if golden is None:
        return
    _check_origin(bundle, golden.record)
    here = describe_environment(isinstance(bundle.backend, Diffusion))
    is_elsewhere = here != golden.record.environment
    drifted = []
    for sample in golden.samples:
        drift = _compare(_paint(bundle, backend, sample.name, sample.request), sample)
        if words := drift.words(golden.record.tolerance, is_elsewhere):
            drifted.append(f"{sample.name}: {words}")
    if drifted:
        noun = "sample" if len(drifted) == 1 else "samples"
        place = f"; painted on {here}" if is_elsewhere else ""
        raise BundleInvalid(
            f"{bundle.version} does not reproduce its golden {noun} {'; '.join(drifted)}; "
            f"recorded on {golden.record.environment}, {golden.record.date}{place}",
            remedy="weights, libraries or code changed: find out which before serving it; "
            f"where the change is wanted, {freeze_remedy(bundle)}",
        )


def _check_origin(bundle: Bundle, record: GoldenRecord) -> None:
    if record.version != bundle.version or record.bundle_sha256 != bundle.fingerprint:
        raise BundleInvalid(
            f"the golden samples of {bundle.version} were recorded on {record.date} with another "
            f"bundle: {record.version} {record.bundle_sha256[:12]}, "
            f"this one is {bundle.fingerprint[:12]}",
            remedy=f"undo the change of the bundle, or {freeze_remedy(bundle)}",
        )
    found = digest_sources(bundle)
    changed = [label for label in record.weights if found.get(label) != record.weights[label]]
    if changed:
        raise BundleInvalid(
            f"{bundle.version}: the weights in {', '.join(changed)} are not those it was frozen "
            f"with on {record.date}",
            remedy=f"restore them, or {freeze_remedy(bundle)}",
        )


def digest_sources(bundle: Bundle) -> dict[str, str]:
    """Digest of each directory of weights that neither a commit nor a sha256 pins."""
    digests = {}
    for source in _sources_of(bundle):
        if source.path is None or source.sha256 is not None:
            continue
        located = source.located(bundle.home).path
        assert located is not None
        folder = located / (source.subfolder or "")
        label = f"{source.label}/{source.subfolder}" if source.subfolder else source.label
        digests[label] = digest_weights(folder)
    return digests


def _sources_of(bundle: Bundle) -> Iterator[ModelSource]:
    backend = bundle.backend
    if not isinstance(backend, Diffusion):
        return
    yield backend.model
    if backend.transformer is not None:
        yield backend.transformer
    if backend.adapter is not None:
        yield backend.adapter.source
    product = getattr(getattr(backend, "recipe", None), "product", None)
    if isinstance(product, ProductAsIpAdapter):
        yield product.source


def _paint(bundle: Bundle, backend: Backend, name: str, request: ExpertRequest) -> UInt8Array:
    # Nobody's picture, so that nothing of it is remembered: twice is twice all of the work.
    asked = replace(request, product_hash="")
    try:
        (reply,) = backend.generate([asked], lambda step, num_steps: None)
    except Sm4llError as exc:
        raise BundleInvalid(
            f"{bundle.version} fails on its golden sample {name}: {exc.detail}",
            remedy=exc.remedy or freeze_remedy(bundle),
        ) from exc
    return np.asarray(reply.images_nhwc[0], np.uint8)


def _compare(painted_hwc: UInt8Array, sample: GoldenSample) -> Drift:
    if painted_hwc.shape != sample.expected_hwc.shape:
        return Drift(255, 255.0)
    return measure_drift(painted_hwc, sample.expected_hwc, sample.request.region_hw)


def measure_drift(a_hwc: UInt8Array, b_hwc: UInt8Array, region_hw: UInt8Array) -> Drift:
    """Differences inside the region."""
    difference = np.abs(a_hwc.astype(np.int16) - b_hwc)[region_hw > 0]
    if difference.size == 0:
        return Drift(0, 0.0)
    return Drift(int(difference.max()), float(difference.mean()))


def record_golden(
    bundle: Bundle,
    backend: Backend,
    requests: Mapping[str, ExpertRequest],
    tolerance: Tolerance | None = None,
) -> tuple[GoldenSet, dict[str, Drift]]:
    """Paint every request twice and keep it as a golden sample, in place of all earlier ones.

    Args:
        requests: by the sample's name, a file name.

    Returns:
        What was written, and how far each second run was from the first.

    Raises:
        BundleInvalid: two runs of one request differ by more than the tolerance.
        NotSupported: the version is somebody else's API.
    """
    if isinstance(bundle.backend, HostedConfig):
        raise NotSupported(
            f"{bundle.version} is a third party's API: what it serves cannot be frozen",
            remedy="compare it in an experiment instead",
        )
    tolerance = tolerance or Tolerance()
    samples, drifts = [], {}
    for name, request in requests.items():
        first = _paint(bundle, backend, name, request)
        sample = GoldenSample(name, request, first)
        drifts[name] = drift = _compare(_paint(bundle, backend, name, request), sample)
        if words := drift.words(tolerance, is_elsewhere=False):
            raise BundleInvalid(
                f"{bundle.version} paints the same request differently, {name}: {words}",
                remedy="without repeatable pictures there is nothing to freeze: look for noise "
                "that does not come from the request's seed",
            )
        samples.append(sample)
    where = describe_environment(isinstance(bundle.backend, Diffusion))
    record = GoldenRecord(
        version=bundle.version,
        bundle_sha256=bundle.fingerprint,
        backend=backend.kind,
        device=where.device,
        torch=where.torch,
        date=dt.date.today(),
        tolerance=tolerance,
        weights=digest_sources(bundle),
        samples=tuple(requests),
    )
    golden = GoldenSet(record, tuple(samples))
    write_golden(golden_folder(bundle), golden)
    return golden, drifts
