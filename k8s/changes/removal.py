"""Takes away what was applied, and waits until nothing of it is left."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby

from k8s.changes.lock import ApplyLock
from k8s.changes.planning import is_ours
from k8s.changes.teller import Teller
from k8s.control.api import ControlPlane
from k8s.control.connection import Manifest
from k8s.control.objects import Ref, stage_of
from k8s.control.revisions import TYPE, Revisions
from k8s.state.snapshot import ORIGIN_LABEL, PART_OF, RAY
from serve.errors import RolloutTimedOut

DATA = ("PersistentVolumeClaim", "Secret")
# What the operator and the controllers make of ours; the namespace is shared, so by label.
OURS = f"{PART_OF}=sm4ll"
OFFSPRING = (("batch/v1", "Job", OURS), ("v1", "Pod", OURS))
POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class Removal:
    """What would go, and what stays."""

    gone: tuple[Manifest, ...]
    kept: tuple[Manifest, ...]


class Remover:
    """Of one namespace; by the revisions that are stored in it."""

    def __init__(
        self,
        api: ControlPlane,
        namespace: str,
        teller: Teller,
        *,
        timeout_s: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._api = api
        self._namespace = namespace
        self._teller = teller
        self._timeout_s = timeout_s
        self._clock = clock
        self._revisions = Revisions(api, namespace)

    def plan(self, with_data: bool) -> Removal:
        """What is there of all stored revisions and was applied by us, in the order it goes."""
        stored = [
            manifest
            for revision in self._revisions.all()
            for manifest in self._revisions.manifests(revision.number)
        ]
        named = {Ref.of(one).is_same_as: one for one in (*stored, *self._data())}
        live = [found for one in named.values() if (found := self._read(one)) is not None]
        ours = [one for one in live if is_ours(one)]
        held = () if with_data else (*DATA, "Namespace")
        gone = [one for one in ours if one["kind"] not in held]
        # The RayService first: its end needs Redis, and the rights of its pods.
        gone.sort(key=lambda one: (one["kind"] != "RayService", -stage_of(one)))
        return Removal(tuple(gone), tuple(one for one in ours if one["kind"] in held))

    def _data(self) -> list[Manifest]:
        """What an earlier delete has kept, whose revisions are gone."""
        namespace = self._api.get("v1", "Namespace", self._namespace)
        found = [] if namespace is None else [namespace]
        for kind in DATA:
            listing = self._api.list("v1", kind, self._namespace, OURS)
            found += [one for one in listing.items if one.get("type") != TYPE]
        return found

    def carry_out(self, removal: Removal) -> None:
        """
        Raises:
            RolloutTimedOut: something is still there.
        """
        end_s = self._clock() + self._timeout_s
        with ApplyLock(self._api, self._namespace).held() as lock:
            services = [one for one in removal.gone if one["kind"] == "RayService"]
            self._delete(services)
            # Also those of one that was deleted before, and whose end was not waited for.
            names = ",".join(sorted({"sm4ll", *(one["metadata"]["name"] for one in services)}))
            clusters = ((RAY, "RayCluster", f"{ORIGIN_LABEL} in ({names})"),)
            self._await(lambda: self._left(services, clusters), end_s, lock)
            rest = [one for one in removal.gone if one["kind"] not in ("RayService", "Namespace")]
            self._delete(rest)
            self._await(lambda: self._left(rest, OFFSPRING), end_s, lock)
            for revision in self._revisions.all():
                self._revisions.delete(revision)
        namespaces = [one for one in removal.gone if one["kind"] == "Namespace"]
        self._delete(namespaces)
        self._await(lambda: self._left(namespaces, ()), end_s, None)

    def _delete(self, manifests: Sequence[Manifest]) -> None:
        for kind, of_kind in groupby(manifests, lambda one: one["kind"]):
            refs = [(Ref.of(one), one["metadata"]["uid"]) for one in of_kind]
            for ref, uid in refs:
                # In the foreground: an owner is there until its pods are gone.
                self._api.delete(
                    *(ref.api_version, ref.kind, ref.name, ref.namespace or None),
                    propagation="Foreground",
                    uid=uid,
                )
            self._teller.said(f"{kind} {', '.join(ref.name for ref, _ in refs)} deleted")

    def _await(self, left: Callable[[], list[str]], end_s: float, lock: ApplyLock | None) -> None:
        while names := left():
            if self._clock() > end_s:
                raise RolloutTimedOut(
                    f"Still there: {', '.join(names[:10])}",
                    remedy="a finalizer keeps it: see that the KubeRay operator runs, and "
                    "`kubectl get -o yaml` of it; run the command again then",
                )
            if lock is not None:
                lock.renew()
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            self._teller.doing(f"waits until {', '.join(names[:3])}{more} are gone")
            self._api.sleep(POLL_S)

    def _left(
        self, manifests: Sequence[Manifest], offspring: Sequence[tuple[str, str, str]]
    ) -> list[str]:
        """Those very objects, not others that took their names meanwhile."""
        found = [(one, self._read(one)) for one in manifests]
        names = [
            str(Ref.of(one))
            for one, live in found
            if live is not None and live["metadata"]["uid"] == one["metadata"]["uid"]
        ]
        for api_version, kind, labels in offspring:
            if self._api.find_resource(api_version, kind) is not None:
                items = self._api.list(api_version, kind, self._namespace, labels).items
                names += [f"{kind} {one['metadata']['name']}" for one in items]
        return names

    def _read(self, manifest: Manifest) -> Manifest | None:
        ref = Ref.of(manifest)
        if self._api.find_resource(ref.api_version, ref.kind) is None:
            return None
        return self._api.get(ref.api_version, ref.kind, ref.name, ref.namespace or None)
