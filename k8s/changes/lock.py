"""One at a time: a Lease that whoever changes the cluster holds, and that ends by itself."""

import datetime as dt
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from k8s.control.api import ControlPlane
from k8s.control.connection import Manifest
from k8s.control.revisions import PART_OF, whoami
from serve.errors import ControlPlaneRefused, ControlPlaneUnreachable, RolloutRefused

NAME = "sm4ll-apply"
DURATION_S = 120
RENEW_S = 20.0
FORMAT = "%Y-%m-%dT%H:%M:%S.%fZ"  # metav1.MicroTime

Now = Callable[[], dt.datetime]


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


class ApplyLock:
    """Held while one apply writes; `renew` keeps it, and finds out when it was lost."""

    def __init__(self, api: ControlPlane, namespace: str, now: Now = utc_now):
        self._api = api
        self._namespace = namespace
        self._now = now
        self.holder = f"{whoami()}/{os.getpid()}/{uuid.uuid4().hex[:8]}"
        self._lease: Manifest | None = None
        self._renewed = now()

    @contextmanager
    def held(self) -> Iterator["ApplyLock"]:
        """
        Raises:
            RolloutRefused: somebody else is at it.
        """
        self._take()
        try:
            yield self
        finally:
            self._release()

    def _take(self) -> None:
        lease = self._api.get("coordination.k8s.io/v1", "Lease", NAME, self._namespace)
        try:
            if lease is None:
                self._lease = self._api.create(self._written({}), self._namespace)
                return
            held_by = lease["spec"].get("holderIdentity") or ""
            if held_by and not self._is_over(lease):
                raise _refusal(lease, self._now())
            # Conditional on the version that was read: of two who come at once, one is refused.
            self._lease = self._api.replace(self._written(lease), self._namespace)
        except ControlPlaneRefused as exc:
            if exc.http_status != 409:
                raise
            found = self._api.get("coordination.k8s.io/v1", "Lease", NAME, self._namespace)
            if found is not None and found["spec"].get("holderIdentity") == self.holder:
                self._lease = found  # the first answer was lost on its way
                return
            raise _refusal(found or self._written({}), self._now()) from exc

    def renew(self) -> None:
        """To be called now and then; writes only when it is time.

        Raises:
            RolloutRefused: it had ended, and somebody else has taken over.
        """
        if self._lease is None or (self._now() - self._renewed).total_seconds() < RENEW_S:
            return
        lease = self._api.get("coordination.k8s.io/v1", "Lease", NAME, self._namespace)
        if lease is not None and lease["spec"].get("holderIdentity") != self.holder:
            self._lease = None
            raise _refusal(lease, self._now())
        if lease is None:
            self._lease = self._api.create(self._written({}), self._namespace)
        else:
            self._lease = self._api.replace(self._written(lease), self._namespace)

    def _release(self) -> None:
        if self._lease is None:
            return
        name = self._lease["metadata"]["name"]
        uid = self._lease["metadata"]["uid"]
        self._lease = None
        try:
            self._api.delete("coordination.k8s.io/v1", "Lease", name, self._namespace, uid=uid)
        except (ControlPlaneRefused, ControlPlaneUnreachable):
            return  # it is somebody else's by now (409), or ends by itself

    def _written(self, lease: Manifest) -> Manifest:
        self._renewed = self._now()
        stamp = self._renewed.strftime(FORMAT)
        spec = {
            "holderIdentity": self.holder,
            "leaseDurationSeconds": DURATION_S,
            "acquireTime": (lease.get("spec") or {}).get("acquireTime", stamp),
            "renewTime": stamp,
        }
        if (lease.get("spec") or {}).get("holderIdentity") != self.holder:
            spec["acquireTime"] = stamp
        made = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease"}
        metadata = lease.get("metadata") or {"name": NAME, "labels": dict(PART_OF)}
        return {**made, "metadata": metadata, "spec": spec}

    def _is_over(self, lease: Manifest) -> bool:
        who, _, rest = lease["spec"]["holderIdentity"].partition("/")
        pid = rest.partition("/")[0]
        if who.endswith(f"@{socket.gethostname()}") and pid.isdigit() and not is_alive(int(pid)):
            return True  # ours, and it crashed
        return _left_s(lease, self._now()) <= 0


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _left_s(lease: Manifest, now: dt.datetime) -> float:
    renewed = dt.datetime.strptime(lease["spec"]["renewTime"], FORMAT).replace(tzinfo=dt.UTC)
    lasts_s = float(lease["spec"].get("leaseDurationSeconds", DURATION_S))
    return lasts_s - (now - renewed).total_seconds()


def _refusal(lease: Manifest, now: dt.datetime) -> RolloutRefused:
    who = lease["spec"]["holderIdentity"].partition("/")[0]
    since = lease["spec"].get("acquireTime", "")[:19].replace("T", " ")
    return RolloutRefused(
        f"{who} is changing this cluster right now, since {since} UTC",
        remedy=f"wait until that has ended; if it was cut off, the lock ends by itself in "
        f"{max(1, round(_left_s(lease, now)))} s",
    )
