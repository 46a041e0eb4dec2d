"""Waiting until the cluster is as it should be, or until waiting cannot help."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from k8s.state.findings import Finding
from k8s.state.snapshot import RAY
from k8s.state.status import ClusterStatus
from serve.errors import ControlPlaneRefused, ControlPlaneUnreachable

if TYPE_CHECKING:
    from k8s.control.api import ControlPlane

Goal = Literal["ready", "upgraded"]
Outcome = Literal["reached", "failed", "late"]

# What the last configuration left behind is still said for a moment after a new one was applied.
SURE_AFTER_S = 20.0
# So seldom where nothing changes, and where changes may not be watched.
REFRESH_S = 10.0
# Pods come by the dozen: so long is waited for the others.
SETTLE_S = 0.5


class Verdict:
    """Decides after each look whether to go on: failure must be seen for a while."""

    def __init__(self, goal: Goal, timeout_s: float, sure_after_s: float = SURE_AFTER_S):
        self._goal = goal
        self._timeout_s = timeout_s
        self._sure_after_s = sure_after_s
        self._broken_since: dict[tuple[str, str], float] = {}
        self.fatal: tuple[Finding, ...] = ()

    def look(self, status: ClusterStatus, elapsed_s: float) -> Outcome | None:
        """None to go on."""
        if status.is_upgraded if self._goal == "upgraded" else status.is_ready:
            return "reached"
        broken = {(found.subject, found.says): found for found in status.broken}
        self._broken_since = {key: self._broken_since.get(key, elapsed_s) for key in broken}
        self.fatal = tuple(
            broken[key]
            for key, since_s in self._broken_since.items()
            if elapsed_s - since_s >= self._sure_after_s
        )
        if self.fatal:
            return "failed"
        return "late" if elapsed_s >= self._timeout_s else None

    def pause_s(self, elapsed_s: float) -> float:
        """How long nothing need be looked at while nothing changes."""
        until_sure_s = self._sure_after_s if self._broken_since else REFRESH_S
        return max(0.05, min(REFRESH_S, self._timeout_s - elapsed_s, until_sure_s or REFRESH_S))


@contextmanager
def watch_changes(
    open_api: Callable[[], "ControlPlane"], namespace: str
) -> Iterator[threading.Event]:
    """An event that is set whenever the RayService or a pod changes; never, where no watch may
    be held: whoever waits on it looks now and then all the same."""
    changed, ended = threading.Event(), threading.Event()
    for api_version, kind in ((RAY, "RayService"), ("v1", "Pod")):
        threading.Thread(
            target=_watch,
            args=(open_api, api_version, kind, namespace, changed, ended),
            name=f"watch-{kind}",
            daemon=True,  # it may be in the middle of a read when the command ends
        ).start()
    try:
        yield changed
    finally:
        ended.set()


def _watch(
    open_api: Callable[[], "ControlPlane"],
    api_version: str,
    kind: str,
    namespace: str,
    changed: threading.Event,
    ended: threading.Event,
) -> None:
    from k8s.control.watching import Watch

    try:
        watch = Watch(open_api(), api_version, kind, namespace)
        for event in watch.events():
            if ended.is_set():
                return
            if event.kind != "IDLE":
                changed.set()
    except (ControlPlaneRefused, ControlPlaneUnreachable):
        return  # listed every REFRESH_S all the same


def next_look(
    changed: threading.Event,
    refresh_s: float = REFRESH_S,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Return when something has changed, or after a while."""
    if changed.wait(refresh_s):
        sleep(SETTLE_S)
        changed.clear()
