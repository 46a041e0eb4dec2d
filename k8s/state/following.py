"""Lines of several pods as they are written: pods that come are joined, streams that break too."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from k8s.state.findings import Manifest, dig, name_of
from k8s.state.pod_logs import Wanted, main_container
from serve.errors import ControlPlaneRefused, ControlPlaneUnreachable

if TYPE_CHECKING:
    from k8s.control.api import ControlPlane

OpenApi = Callable[[], "ControlPlane"]
# A stream that ends while its container runs is opened again from so long ago: the kubelet counts
# in whole seconds, so a line may come twice rather than not at all.
OVERLAP_S = 1
PAUSE_S = 1.0


class Follower:
    """One thread for each pod, and one that looks for new pods; all end with the process."""

    def __init__(self, open_api: OpenApi, namespace: str, wanted: Wanted, since_s: int | None):
        self._open_api = open_api
        self._namespace = namespace
        self._wanted = wanted
        self._since_s = since_s
        self._lines: queue.Queue[tuple[Manifest, str] | Exception] = queue.Queue(maxsize=10_000)
        self._followed: set[str] = set()

    def lines(self, pods: tuple[Manifest, ...]) -> Iterator[tuple[Manifest, str]]:
        """
        Args:
            pods: that are there already.

        Raises:
            ControlPlaneRefused: logs may not be read.
            ControlPlaneUnreachable: nothing answers any more.
        """
        for pod in pods:
            self._join(pod, self._since_s)
        self._start(self._look_for_pods)
        while True:
            told = self._lines.get()
            if isinstance(told, Exception):
                raise told
            pod, line = told
            if self._wanted.takes_line(line):
                yield pod, line

    def _start(self, run: Callable[[], None]) -> None:
        threading.Thread(target=run, daemon=True).start()

    def _join(self, pod: Manifest, since_s: int | None) -> None:
        name = name_of(pod)
        started = dig(pod, "status", "containerStatuses", 0, "state", "running") is not None
        if name not in self._followed and started and self._wanted.takes_pod(pod):
            self._followed.add(name)
            self._start(lambda: self._follow(pod, since_s))

    def _look_for_pods(self) -> None:
        from k8s.control.watching import Watch

        try:
            for event in Watch(self._open_api(), "v1", "Pod", self._namespace).events():
                if event.kind in ("ADDED", "MODIFIED"):
                    self._join(event.object, None)
        except (ControlPlaneRefused, ControlPlaneUnreachable):
            return  # those that are there are followed all the same

    def _follow(self, pod: Manifest, since_s: int | None) -> None:
        api = self._open_api()
        name, container = name_of(pod), main_container(pod)
        try:
            while True:
                self._read(api, pod, container, since_s)
                now = api.get("v1", "Pod", name, self._namespace)
                if now is None or dig(now, "status", "phase") in ("Succeeded", "Failed"):
                    return
                since_s = OVERLAP_S
                api.sleep(PAUSE_S)
        except (ControlPlaneRefused, ControlPlaneUnreachable) as exc:
            if getattr(exc, "http_status", None) in (400, 404):  # it has gone, or starts again
                self._followed.discard(name)
                return
            self._lines.put(exc)

    def _read(
        self, api: "ControlPlane", pod: Manifest, container: str | None, since_s: int | None
    ) -> None:
        from urllib3.exceptions import HTTPError

        answer = api.open_logs(
            name_of(pod), self._namespace, container, follow=True, since_s=since_s
        )
        with answer:
            try:
                for line in answer:
                    text = bytes(line).decode(errors="replace").rstrip("\n")
                    self._lines.put((pod, text))
            except HTTPError:
                return  # opened again
