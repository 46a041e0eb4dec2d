"""What an application is built from, as one short name: the same documents, the same revision.

Kubernetes brings a changed ConfigMap to a pod up to minutes after the Serve config that wants it:
who builds the application waits for the documents that it was told of.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from deployments.bundle import Bundle, load_family
from deployments.judge_models import load_judge
from deployments.measured import load_footprints
from serve.config import FamilyConfig, VersionId
from serve.errors import ConfigError

WAIT_S = 180.0
"""Kubelet looks every minute, and keeps what it read for up to another."""
POLL_S = 1.0
SCALABLE = ("router", "segmenter", "judge")


def family_revision(path: Path) -> str:
    """
    Raises:
        ConfigError: the family or one of its bundles cannot be used.
    """
    return revision_of(path, *load_family(path))


def revision_of(path: Path, family: FamilyConfig, bundles: Mapping[VersionId, Bundle]) -> str:
    """
    Args:
        path: the family's file, beside which its judge's is.
    """
    judge = load_judge(path, family.judge)[0].model_dump_json() if family.judge else ""
    measured = {
        version: [footprint.model_dump(mode="json") for footprint in load_footprints(bundle)]
        for version, bundle in bundles.items()
    }
    pinned = {version: bundle.fingerprint for version, bundle in bundles.items()}
    told = json.dumps([_without_bounds(family), pinned, measured, judge], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _without_bounds(family: FamilyConfig) -> dict[str, object]:
    """Bounds change in the running application. That one of them is 0 is what routers judge by
    whether they are ready, so it counts; objectives are for alerts alone, and do not. Nor does
    where the documents lie."""
    written = family.model_dump(mode="json", exclude={"slo": True, "bundles_dir": True})
    scalable = [written[name] for name in SCALABLE if written[name] is not None]
    for deployed in (*scalable, *written["shared"], *written["experts"]):
        deployed["may_be_none"] = deployed.pop("autoscaling")["min_replicas"] == 0
    if written["judge"] is not None:
        del written["judge"]["models"]
    return written


def wait_for_revision(
    path: Path,
    revision: str,
    *,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> None:
    """Return when the family at the path is that one.

    Raises:
        ConfigError: it was not within WAIT_S; says what it was.
    """
    end = now() + WAIT_S
    while True:
        try:
            found = family_revision(path)
        except ConfigError as exc:  # half of it may be new
            found = str(exc)
        if found == revision:
            return
        if now() >= end:
            raise ConfigError(
                f"{path}: revision {revision} did not come within {WAIT_S:g} s; there is {found}"
            )
        sleep(POLL_S)
