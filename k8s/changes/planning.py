"""What an apply would do to the cluster, object by object, by the server's own dry run.

The server says what each object would become, so fields that it fills in, or that others own,
differ from nothing; and what admission refuses is known before anything has changed.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from k8s.changes.difference import Difference, compare_objects
from k8s.changes.migration import is_over, outcome_of
from k8s.control.api import FIELD_MANAGER, ControlPlane
from k8s.control.connection import Manifest
from k8s.control.objects import Ref, in_order, inputs_of
from k8s.control.revisions import LABEL, Revision, Revisions
from k8s.rendering.cluster_hash import needs_new_cluster
from serve.errors import ClusterError, ControlPlaneRefused, FieldConflict

Act = Literal["create", "change", "run", "keep", "delete"]
# What holds data, or other people's things, is never pruned. A Secret that an overlay brought no
# longer is somebody's own by the same name (by hand, External Secrets), and pods still read it.
UNPRUNED = frozenset(
    {
        *("Namespace", "Secret", "CustomResourceDefinition"),
        *("PersistentVolumeClaim", "PersistentVolume"),
    }
)
NUM_THREADS = 8


@dataclass(frozen=True, slots=True)
class Step:
    """One object, and what happens to it."""

    ref: Ref
    act: Act
    manifest: Manifest
    differences: tuple[Difference, ...] = ()
    new_cluster: tuple[str, ...] = ()
    """Of a RayService: the fields because of which KubeRay builds a second cluster."""
    live: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """What the server would refuse."""

    ref: Ref
    error: ClusterError


@dataclass(frozen=True, slots=True)
class Plan:
    """All steps, in the order in which they are taken; deletions last."""

    namespace: str
    steps: tuple[Step, ...]
    problems: tuple[Problem, ...] = ()
    is_namespace_new: bool = False
    """Nothing in it could be tried: the server refuses what is in no namespace yet."""
    newest: int = 0
    """The newest revision when this was planned."""
    notes: tuple[str, ...] = field(default=())

    @property
    def changes(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.act != "keep")


class Planner:
    """Asks one control plane; changes nothing."""

    def __init__(self, api: ControlPlane, namespace: str, force: bool = False):
        """
        Args:
            force: Fields that other managers own would be taken over.
        """
        self._api = api
        self._namespace = namespace
        self._force = force
        self._revisions = Revisions(api, namespace)

    def plan(self, manifests: Sequence[Manifest], *, runs_jobs: bool = True) -> Plan:
        """
        Args:
            runs_jobs: False leaves the overlay's Jobs out: an older migration does not know the
                newer tables.
        """
        is_new = self._api.get("v1", "Namespace", self._namespace) is None
        revisions = [] if is_new else self._revisions.all()
        stored = {one.number: self._revisions.manifests(one.number) for one in revisions}
        ran = _jobs_that_ran(revisions, stored)
        wanted = [one for one in in_order(manifests) if runs_jobs or one["kind"] != "Job"]
        tried = self._concurrently(lambda one: self._try_step(one, ran, is_new), wanted)
        # Found by what all revisions had: one that was broken off has left things as well.
        gone = self._find_gone(manifests, [one for them in stored.values() for one in them])
        return Plan(
            namespace=self._namespace,
            steps=(*(one for one in tried if isinstance(one, Step)), *gone),
            problems=tuple(one for one in tried if isinstance(one, Problem)),
            is_namespace_new=is_new,
            newest=max(stored, default=0),
            notes=_notes(tried),
        )

    def _concurrently(
        self, act: Callable[[Manifest], "Step | Problem"], manifests: Sequence[Manifest]
    ) -> list["Step | Problem"]:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            return list(pool.map(act, manifests))

    def _try_step(self, manifest: Manifest, ran: set[str], is_new: bool) -> "Step | Problem":
        ref = Ref.of(manifest)
        try:
            self._api.resource(ref.api_version, ref.kind)
            if is_new and ref.namespace == self._namespace:
                return Step(ref, "run" if ref.kind == "Job" else "create", manifest)
            if ref.kind == "Job":
                return self._try_job(ref, manifest, ran)
            return self._try_object(ref, manifest)
        except ControlPlaneRefused as exc:
            return Problem(ref, exc)

    def _try_object(self, ref: Ref, manifest: Manifest) -> Step:
        live = self._read(ref)
        # The number is written with what is applied, and is no change of it.
        number = ((live or {}).get("metadata", {}).get("annotations") or {}).get(LABEL)
        asked = with_number(manifest, number) if number and ref.kind == "RayService" else manifest
        after = self._api.apply(asked, self._namespace, dry_run=True, force=self._force)
        if live is None:
            return Step(ref, "create", manifest)
        differences = tuple(compare_objects(live, after))
        if not differences:
            return Step(ref, "keep", manifest, live=live)
        reasons = needs_new_cluster(live, after) if ref.kind == "RayService" else ()
        return Step(ref, "change", manifest, differences, tuple(reasons), live)

    def _try_job(self, ref: Ref, manifest: Manifest, ran: set[str]) -> Step:
        """A Job's template cannot be changed, so that another one takes its name."""
        live = self._read(ref)
        inputs = inputs_of(manifest)
        if live is None and inputs in ran:
            return Step(ref, "keep", manifest)
        if live is not None and inputs_of(live) == inputs and outcome_of(live) != "failed":
            act: Act = "keep" if is_over(live) else "run"
            return Step(ref, act, manifest, live=live)
        nameless = {k: v for k, v in manifest["metadata"].items() if k != "name"}
        tried = {**manifest, "metadata": {**nameless, "generateName": f"{ref.name}-"}}
        self._api.create(tried, self._namespace, dry_run=True)
        return Step(ref, "run", manifest, live=live)

    def _find_gone(self, manifests: Sequence[Manifest], before: Sequence[Manifest]) -> list[Step]:
        kept = {Ref.of(one).is_same_as for one in manifests}
        former = {Ref.of(one).is_same_as: one for one in before if one["kind"] not in UNPRUNED}
        steps = []
        for identity, manifest in sorted(former.items()):
            ref = Ref.of(manifest)
            if identity in kept or not self._api.find_resource(ref.api_version, ref.kind):
                continue
            live = self._read(ref)
            if live is not None and is_ours(live):
                steps.append(Step(ref, "delete", manifest, live=live))
        return steps

    def _read(self, ref: Ref) -> Manifest | None:
        return self._api.get(ref.api_version, ref.kind, ref.name, ref.namespace or None)


def with_number(manifest: Manifest, number: str) -> Manifest:
    """A RayService that says of which revision it is, for `sm4ll k8s status`."""
    metadata = manifest["metadata"]
    annotations = {**(metadata.get("annotations") or {}), LABEL: number}
    return {**manifest, "metadata": {**metadata, "annotations": annotations}}


def is_ours(live: Manifest) -> bool:
    """Whether some of it was applied by us: a name alone may be anybody's."""
    managers = live["metadata"].get("managedFields") or ()
    return any(one.get("manager") == FIELD_MANAGER for one in managers)


def _jobs_that_ran(revisions: Sequence[Revision], stored: dict[int, list[Manifest]]) -> set[str]:
    """Digests of the Jobs of the last revision that was done: some are deleted after they ended."""
    for one in revisions:
        if one.state == "done" and one.rolled_back_to is None:
            return {inputs_of(job) for job in stored[one.number] if job["kind"] == "Job"} - {""}
    return set()


def _notes(tried: Sequence[Step | Problem]) -> tuple[str, ...]:
    notes = []
    for one in tried:
        if isinstance(one, Problem) or one.ref.kind != "RayService" or one.live is None:
            continue
        conditions = (one.live.get("status") or {}).get("conditions") or ()
        is_moving = any(
            c["type"] == "UpgradeInProgress" and c["status"] == "True" for c in conditions
        )
        if is_moving and one.act != "keep":
            notes.append(
                "an upgrade is in progress: KubeRay applies this to the cluster that is being "
                "prepared, and the one that answers now stays as it is until the switch"
            )
        strategy = (one.manifest["spec"].get("upgradeStrategy") or {}).get("type")
        if one.new_cluster and strategy == "None":
            notes.append("upgradeStrategy is None: KubeRay will NOT build the new cluster")
    return tuple(notes)


def conflicts_of(plan: Plan) -> tuple[Problem, ...]:
    return tuple(one for one in plan.problems if isinstance(one.error, FieldConflict))
