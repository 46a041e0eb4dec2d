"""A Job that must have ended before anything else goes on."""

import time
from collections.abc import Callable
from typing import Literal

from k8s.control.api import ControlPlane
from k8s.control.connection import Manifest
from k8s.control.objects import Ref, inputs_of
from k8s.control.watching import Watch
from k8s.state.findings import condition_of, dig
from serve.errors import ClusterError, ControlPlaneRefused, RolloutFailed, RolloutTimedOut

Outcome = Literal["complete", "failed", "running"]
NUM_LINES = 20
TICK_S = 5
GONE_S = 120.0


def outcome_of(job: Manifest) -> Outcome:
    if condition_of(job, "Complete").get("status") == "True":
        return "complete"
    return "failed" if condition_of(job, "Failed").get("status") == "True" else "running"


def is_over(job: Manifest) -> bool:
    return outcome_of(job) != "running"


class JobRun:
    """Runs a Job to its end, in place of one of its name that was made of something else."""

    def __init__(
        self,
        api: ControlPlane,
        tick: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
            tick: Called now and then with what is waited for; may raise to stop.
        """
        self._api = api
        self._tick = tick
        self._clock = clock

    def start(self, manifest: Manifest, force: bool = False) -> None:
        """Replaces one that has ended, or that has not begun its work; waits for one at work."""
        ref = Ref.of(manifest)
        live = self._api.get(ref.api_version, ref.kind, ref.name, ref.namespace)
        if live is not None:
            if inputs_of(live) == inputs_of(manifest) and outcome_of(live) != "failed":
                return
            if not is_over(live) and self._is_at_work(ref):
                raise RolloutFailed(
                    f"Job {ref.name} of an earlier apply is still at work",
                    remedy="wait for its end and apply again; or `kubectl delete job "
                    f"{ref.name} -n {ref.namespace}` if it is stuck",
                )
            self._remove(ref, live)
        self._api.apply(manifest, ref.namespace, force=force)

    def finish(self, ref: Ref, timeout_s: float) -> None:
        """
        Raises:
            RolloutFailed: the Job failed; with the end of its log.
            RolloutTimedOut: it still runs.
        """
        watch = Watch(
            *(self._api, ref.api_version, ref.kind, ref.namespace),
            fields=f"metadata.name={ref.name}",
            stream_s=TICK_S,
            clock=self._clock,
        )
        for event in watch.events(timeout_s):
            if event.kind == "DELETED":
                raise RolloutFailed(
                    f"Job {ref.name} was deleted before it had ended",
                    remedy="apply again: it is made anew",
                )
            outcome = outcome_of(event.object)
            if outcome == "complete":
                return
            if outcome == "failed":
                raise self._failure(ref, event.object)
            self._tick(f"{ref}: {self._words(ref)}")
        raise RolloutTimedOut(
            f"{ref} has not ended: {self._words(ref)}",
            remedy="see `sm4ll k8s status`; apply again goes on waiting for the same Job",
        )

    def _failure(self, ref: Ref, job: Manifest) -> RolloutFailed:
        why = next(
            (
                one.get("message", "")
                for one in job["status"]["conditions"]
                if one["type"] == "Failed"
            ),
            "",
        )
        tail = self._log_tail(ref)
        detail = f"{ref} failed: {why}" if why else f"{ref} failed"
        if tail:
            detail += "\nThe last lines of its log:\n" + "\n".join(f"  | {one}" for one in tail)
        return RolloutFailed(
            detail,
            remedy="correct what it says and apply again; the RayService was not touched, what ran "
            "before runs on",
        )

    def _log_tail(self, ref: Ref) -> list[str]:
        for pod in reversed(self._pods(ref)):
            try:
                text = self._api.logs(pod["metadata"]["name"], ref.namespace, tail_lines=NUM_LINES)
            except ClusterError:
                continue  # its container never began, or its node is gone
            if text.strip():
                return text.rstrip("\n").splitlines()
        return []

    def _pods(self, ref: Ref) -> list[Manifest]:
        """The newest last."""
        labels = f"batch.kubernetes.io/job-name={ref.name}"
        found = self._api.list("v1", "Pod", ref.namespace, labels).items
        return sorted(found, key=lambda one: str(one["metadata"].get("creationTimestamp", "")))

    def _is_at_work(self, ref: Ref) -> bool:
        return any(dig(pod, "status", "phase") == "Running" for pod in self._pods(ref))

    def _words(self, ref: Ref) -> str:
        """What its newest pod does."""
        for pod in reversed(self._pods(ref)):
            for status in dig(pod, "status", "containerStatuses") or ():
                reason = dig(status, "state", "waiting", "reason")
                if reason:
                    message = str(dig(status, "state", "waiting", "message") or "")
                    return f"{reason}{f' ({message[:120]})' if message else ''}"
            phase = dig(pod, "status", "phase") or "Pending"
            return {"Running": "runs", "Pending": "waits for a place"}.get(phase, phase.lower())
        return "has no pod yet"

    def _remove(self, ref: Ref, live: Manifest) -> None:
        uid = live["metadata"]["uid"]
        self._api.delete(ref.api_version, ref.kind, ref.name, ref.namespace, uid=uid)
        end_s = self._clock() + GONE_S
        while self._clock() < end_s:
            found = self._api.get(ref.api_version, ref.kind, ref.name, ref.namespace)
            if found is None or found["metadata"]["uid"] != uid:
                return
            self._tick(f"{ref}: waits until the one before is deleted")
            self._api.sleep(1.0)
        raise ControlPlaneRefused(
            f"{ref} was deleted and is still there: something keeps it (a finalizer)",
            remedy=f"see `kubectl get job {ref.name} -n {ref.namespace} -o yaml`",
        )
