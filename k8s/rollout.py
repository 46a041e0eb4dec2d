"""Carries a plan out: the migration to its end, then the RayService, then what looks at it.

Every write is idempotent and the revision is stored as `pending` before the first: whatever cuts
it off, applying again goes on from there.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path

from k8s.changes.bounds import bring_bounds
from k8s.changes.lock import ApplyLock
from k8s.changes.migration import JobRun
from k8s.changes.planning import Act, Plan, Planner, Step, with_number
from k8s.changes.teller import Teller
from k8s.control.api import ControlPlane
from k8s.control.connection import Manifest
from k8s.control.objects import Ref, digest, is_awaited
from k8s.control.revisions import Revision, Revisions, begin_revision
from k8s.state.snapshot import read_snapshot
from k8s.state.status import ClusterStatus, judge
from k8s.state.waiting import REFRESH_S, SURE_AFTER_S, Verdict, next_look, watch_changes
from serve.errors import ClusterError, RolloutFailed, RolloutRefused, RolloutTimedOut

# After a change KubeRay may tell the state of before once more: it looks every 2 s.
SETTLE_S = 5.0
DONE: Mapping[Act, str] = {"create": "created", "change": "changed"}


def refuse_problems(plan: Plan) -> None:
    """
    Raises:
        RolloutFailed: the server would refuse something; all of it is named.
    """
    if not plan.problems:
        return
    told = "\n".join(f"  {one.ref}: {one.error.detail}" for one in plan.problems)
    remedies = dict.fromkeys(one.error.remedy for one in plan.problems if one.error.remedy)
    raise RolloutFailed(
        f"The cluster would refuse {len(plan.problems)} of the objects:\n{told}",
        remedy="; ".join(remedies),
    )


class Rollout:
    """One apply, rollback included."""

    def __init__(
        self,
        api: ControlPlane,
        namespace: str,
        teller: Teller,
        *,
        timeout_s: float = 1800.0,
        force: bool = False,
        is_waiting: bool = True,
        sure_after_s: float = SURE_AFTER_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
            timeout_s: Of the whole, the migration included.
            force: Take fields over that other managers own.
            is_waiting: False ends when everything is written; deletes nothing, because what runs
                may still need it, and leaves the revision pending.
            sure_after_s: So long something must be broken until that counts as a failure.
        """
        self._api = api
        self._namespace = namespace
        self._teller = teller
        self._timeout_s = timeout_s
        self._force = force
        self._is_waiting = is_waiting
        self._sure_after_s = sure_after_s
        self._clock = clock
        self._began_s = clock()
        self._lock = ApplyLock(api, namespace)
        self._revisions = Revisions(api, namespace)

    def carry_out(
        self,
        plan: Plan,
        manifests: Sequence[Manifest],
        overlay: str,
        folder: Path | None,
        rolled_back_to: int | None = None,
    ) -> Revision:
        """
        Args:
            manifests: All of them, those that the plan leaves alone included.
            folder: What the overlay was built of, for its git revision.

        Raises:
            RolloutRefused: somebody else is at it, or was since the plan was made.
            RolloutFailed: the server refused something, or the cluster cannot become ready.
            RolloutTimedOut: it is not ready yet.
        """
        self._began_s = self._clock()
        if plan.is_namespace_new:
            plan = self._open_namespace(plan, manifests)
        with self._lock.held():
            revision = self._begin(plan, manifests, overlay, folder)
            revision = replace(revision, rolled_back_to=rolled_back_to)
            revision = self._revisions.write(revision, manifests)
            try:
                self._write_all(plan, revision)
                if self._is_waiting:
                    self._await_service(plan)
                    self._prune(plan)
            except RolloutTimedOut:
                raise  # it may still become ready: the next apply goes on waiting
            except ClusterError:
                with suppress(ClusterError):  # what went wrong first is what matters
                    self._revisions.mark(revision, "failed")
                raise
            if not self._is_waiting:
                return revision
            revision = self._revisions.mark(revision, "done")
            self._revisions.forget_old()
        return revision

    def _open_namespace(self, plan: Plan, manifests: Sequence[Manifest]) -> Plan:
        """The server can try the rest only where it is to be."""
        for step in plan.steps:
            if step.ref.kind == "Namespace" and step.ref.name == self._namespace:
                self._api.apply(step.manifest, force=self._force)
                self._teller.said(f"Namespace {self._namespace} created")
        planned = Planner(self._api, self._namespace, self._force).plan(manifests)
        refuse_problems(planned)
        return planned

    def _begin(
        self, plan: Plan, manifests: Sequence[Manifest], overlay: str, folder: Path | None
    ) -> Revision:
        revisions = self._revisions.all()
        newest = revisions[0] if revisions else None
        if newest is not None and newest.number != plan.newest:
            raise RolloutRefused(
                f"{newest.author} has applied revision {newest.number} since this plan was made",
                remedy="run the command again, and look at what differs now",
            )
        number = newest.number + 1 if newest else 1
        if newest is not None and is_unfinished(newest, manifests):
            number = newest.number  # the same again, after something cut it off
        return begin_revision(manifests, overlay, folder, number)

    def _write_all(self, plan: Plan, revision: Revision) -> None:
        kept = [step for step in plan.steps if step.act != "delete"]
        # One line a kind, not one an object.
        for (kind, act), steps in groupby(kept, lambda step: (step.ref.kind, step.act)):
            names = [self._write(step, revision) for step in steps]
            if act in DONE and kind != "Job":
                self._teller.said(f"{kind} {', '.join(names)} {DONE[act]}")

    def _write(self, step: Step, revision: Revision) -> str:
        self._lock.renew()
        if step.ref.kind == "Job":
            self._run_job(step)
            return step.ref.name
        manifest = step.manifest
        if step.ref.kind == "RayService":
            manifest = with_number(manifest, str(revision.number))
        self._teller.doing(f"applies {step.ref}")
        self._api.apply(manifest, self._namespace, force=self._force)
        if step.ref.kind == "RayService" and not step.new_cluster:
            for told in bring_bounds(self._api, manifest, self._namespace):
                self._teller.said(told)
        return step.ref.name

    def _run_job(self, step: Step) -> None:
        if step.act == "keep":
            return
        run = JobRun(self._api, self._tick, self._clock)
        run.start(step.manifest, self._force)
        if not is_awaited(step.manifest):
            self._teller.said(f"{step.ref} started")
            return
        self._teller.doing(f"{step.ref} begins")
        run.finish(step.ref, self._left_s())
        self._teller.said(f"{step.ref} done")

    def _tick(self, text: str) -> None:
        self._lock.renew()
        self._teller.doing(text)

    def _left_s(self) -> float:
        return max(0.05, self._timeout_s - (self._clock() - self._began_s))

    def _await_service(self, plan: Plan) -> None:
        step = next((one for one in plan.steps if one.ref.kind == "RayService"), None)
        if step is None:
            return
        name = step.ref.name
        settle_s = SETTLE_S if step.act == "change" else 0.0
        since_s: float | None = None
        verdict = Verdict("upgraded", self._timeout_s, self._sure_after_s)
        with watch_changes(self._api.another, self._namespace) as changed:
            while True:
                status = judge(read_snapshot(self._api, self._namespace, name))
                now_s = self._clock()
                outcome = verdict.look(status, now_s - self._began_s)
                since_s = (since_s or now_s) if outcome == "reached" else None
                if since_s is not None and now_s - since_s >= settle_s:
                    self._teller.said(f"RayService {name} is ready")
                    return
                if outcome == "failed":
                    raise _failure(name, verdict)
                if outcome == "late":
                    raise _lateness(name, status)
                self._tick(in_one_line(status))
                longest_s = REFRESH_S if since_s is None else settle_s
                pause_s = min(longest_s, self._left_s(), self._sure_after_s or longest_s)
                next_look(changed, pause_s, self._api.sleep)

    def _prune(self, plan: Plan) -> None:
        """After the new cluster answers: the old one's pods may have needed it until then."""
        for step in plan.steps:
            if step.act != "delete" or step.live is None:
                continue
            self._lock.renew()
            ref: Ref = step.ref
            uid = step.live["metadata"]["uid"]
            where = ref.namespace or None
            if self._api.delete(ref.api_version, ref.kind, ref.name, where, uid=uid):
                self._teller.said(f"{ref} deleted")


def is_unfinished(newest: Revision, manifests: Sequence[Manifest]) -> bool:
    """Whether an apply of these very manifests has begun and was not done."""
    return newest.state != "done" and newest.digest == digest(list(manifests))


def in_one_line(status: ClusterStatus) -> str:
    """What there is to say while it is waited for."""
    running = sum(app.status == "RUNNING" for app in status.applications)
    parts = [f"RayService {status.name} is {status.state}"]
    pending = [one for one in status.clusters if one.role == "pending"]
    if pending:
        parts.append(f"new cluster {pending[0].name}")
    if status.pools:
        ready, wanted = (sum(getattr(p, n) for p in status.pools) for n in ("ready", "wanted"))
        parts.append(f"{ready} of {wanted} pods ready")
    if status.applications:
        parts.append(f"{running} of {len(status.applications)} applications run")
    others = (one for one in status.findings if not one.subject.startswith("RayService"))
    for found in islice(others, 1):
        parts.append(f"{found.subject} {found.says}")
    return "; ".join(parts)


def _failure(name: str, verdict: Verdict) -> RolloutFailed:
    told = "\n".join(f"  {one.subject}: {one.says}" for one in verdict.fatal)
    remedies = dict.fromkeys(one.remedy for one in verdict.fatal if one.remedy)
    return RolloutFailed(
        f"RayService {name} cannot become ready:\n{told}",
        remedy="; ".join([*remedies, "`sm4ll k8s rollback` goes back to what ran before"]),
    )


def _lateness(name: str, status: ClusterStatus) -> RolloutTimedOut:
    told = "".join(f"\n  {one.subject}: {one.says}" for one in status.findings[:5])
    return RolloutTimedOut(
        f"RayService {name} is not ready in time: {in_one_line(status)}{told}",
        remedy="everything is applied and may still become ready: `sm4ll k8s wait` goes on "
        "waiting, `sm4ll k8s status` says what is missing, `sm4ll k8s rollback` goes back",
    )
