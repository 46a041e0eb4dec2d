"""The only door to a control plane: Kubernetes' REST API, with typed errors and patience.

Knows kinds only by discovery, so that custom resources are as good as any other. Decides nothing
about what is deployed.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from urllib3.exceptions import HTTPError

from k8s.control.connection import READ_S, Connection, Manifest, Query
from serve.errors import ControlPlaneRefused

FIELD_MANAGER = "sm4ll"
BRINGERS = {
    "ray.io": "the KubeRay operator (Helm chart kuberay-operator 1.7.0)",
    "gateway.networking.k8s.io": "the Gateway API and a controller of it",
    "monitoring.coreos.com": "the Prometheus operator",
    "kueue.x-k8s.io": "Kueue",
    "external-secrets.io": "the External Secrets operator",
}
PAGE = 500  # client-go's default page of a list


@dataclass(frozen=True, slots=True)
class Resource:
    """One kind as the server names it in its paths."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str | None = None, name: str | None = None, sub: str = "") -> str:
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.api_version}"
        if self.namespaced and namespace:
            root += f"/namespaces/{quote(namespace, safe='')}"
        root += f"/{self.plural}"
        if name is not None:
            root += f"/{quote(name, safe='')}"
        return f"{root}/{sub}" if sub else root


@dataclass(frozen=True, slots=True)
class Listing:
    """Objects, and the moment of the cluster's history that they are of."""

    items: tuple[Manifest, ...]
    resource_version: str


class ControlPlane(Connection):
    """Reads and writes objects of any kind."""

    def __init__(self, open_client: Callable[[], Any], sleep: Callable[[float], None] = time.sleep):
        super().__init__(open_client, sleep)
        self._resources: dict[str, dict[str, Resource]] = {}

    # What there is

    def version(self) -> str:
        """Such as v1.36.2."""
        answer = self.request("GET", "/version")
        return str(answer["gitVersion"])

    def served_versions(self, group: str) -> tuple[str, ...]:
        """Of a group, the preferred one first; none where the group is not installed."""
        try:
            answer = self.request("GET", f"/apis/{group}")
        except ControlPlaneRefused as exc:
            if exc.http_status == 404:
                return ()
            raise
        preferred = answer.get("preferredVersion", {}).get("version")
        names = [one["version"] for one in answer["versions"]]
        return tuple(sorted(names, key=lambda name: name != preferred))

    def find_resource(self, api_version: str, kind: str) -> Resource | None:
        """None where the kind is not installed; that is asked again each time."""
        if kind not in self._resources.get(api_version, {}):
            self._resources[api_version] = self._discover(api_version)
        return self._resources[api_version].get(kind)

    def resource(self, api_version: str, kind: str) -> Resource:
        """
        Raises:
            ControlPlaneRefused: the kind is not installed.
        """
        found = self.find_resource(api_version, kind)
        if found is None:
            raise ControlPlaneRefused(
                f"The cluster does not know {kind} of {api_version}",
                remedy=f"install what brings it: {_bringer(api_version)}. `sm4ll k8s doctor` says "
                "what else is missing.",
                http_status=404,
                reason="KindUnknown",
            )
        return found

    def _discover(self, api_version: str) -> dict[str, Resource]:
        root = "/apis/" if "/" in api_version else "/api/"
        try:
            answer = self.request("GET", root + api_version)
        except ControlPlaneRefused as exc:
            if exc.http_status == 404:
                return {}
            raise
        return {
            one["kind"]: Resource(api_version, one["kind"], one["name"], bool(one["namespaced"]))
            for one in answer["resources"]
            if "/" not in one["name"]
        }

    # Reading

    def get(
        self, api_version: str, kind: str, name: str, namespace: str | None = None
    ) -> Manifest | None:
        """None when there is no such object."""
        path = self.resource(api_version, kind).path(namespace, name)
        try:
            return self.request("GET", path)
        except ControlPlaneRefused as exc:
            if exc.http_status == 404:
                return None
            raise

    def list(
        self,
        api_version: str,
        kind: str,
        namespace: str | None = None,
        labels: str = "",
        fields: str = "",
    ) -> Listing:
        """All objects, page by page; of every namespace where none is named."""
        path = self.resource(api_version, kind).path(namespace)
        query = _selectors(labels, fields)
        items: list[Manifest] = []
        page = self.request("GET", path, query=(*query, ("limit", str(PAGE))))
        while True:
            # Objects in a list do not say what they are.
            items += [{"apiVersion": api_version, "kind": kind, **one} for one in page["items"]]
            more = page["metadata"].get("continue")
            if not more:
                return Listing(tuple(items), page["metadata"]["resourceVersion"])
            page = self.request(
                "GET", path, query=(*query, ("limit", str(PAGE)), ("continue", more))
            )

    def logs(
        self,
        pod: str,
        namespace: str,
        container: str | None = None,
        tail_lines: int | None = None,
        previous: bool = False,
        since_s: int | None = None,
    ) -> str:
        """What a container wrote, of its run before this one where that is asked."""
        with self.open_logs(
            pod, namespace, container, tail_lines, previous=previous, since_s=since_s
        ) as answer:
            return bytes(answer.data).decode(errors="replace")

    def follow_logs(
        self, pod: str, namespace: str, container: str | None = None, tail_lines: int | None = None
    ) -> Iterator[str]:
        """Lines as they are written, until the container or the connection ends."""
        with self.open_logs(pod, namespace, container, tail_lines, follow=True) as answer:
            try:
                for line in answer:
                    yield bytes(line).decode(errors="replace").rstrip("\n")
            except HTTPError:
                return

    def open_logs(
        self,
        pod: str,
        namespace: str,
        container: str | None = None,
        tail_lines: int | None = None,
        *,
        follow: bool = False,
        previous: bool = False,
        since_s: int | None = None,
    ) -> Any:
        """The answer itself, for whoever reads as it comes."""
        wanted = {
            "container": container,
            "tailLines": tail_lines,
            "follow": "true" if follow else None,
            "previous": "true" if previous else None,
            "sinceSeconds": since_s,
        }
        query = tuple((name, str(value)) for name, value in wanted.items() if value is not None)
        path = self.resource("v1", "Pod").path(namespace, pod, "log")
        return self.open("GET", path, query=query, read_s=None if follow else READ_S)

    def may(
        self, verb: str, group: str, plural: str, namespace: str | None = None, sub: str = ""
    ) -> bool:
        """Whether we may do that, by the cluster's own judgement."""
        attributes = {"verb": verb, "group": group, "resource": plural, "subresource": sub}
        if namespace:
            attributes["namespace"] = namespace
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return bool(self.request("POST", path, body=review)["status"]["allowed"])

    # Writing

    def apply(
        self,
        manifest: Manifest,
        namespace: str | None = None,
        *,
        dry_run: bool = False,
        force: bool = False,
    ) -> Manifest:
        """Server-side apply as `sm4ll`; the answer is the object as it is, or would be, then.

        Args:
            force: Take fields over that another manager owns.

        Raises:
            FieldConflict: another manager owns what would change.
        """
        query = [("fieldManager", FIELD_MANAGER), ("force", str(force).lower())]
        if dry_run:
            query.append(("dryRun", "All"))
        name = manifest["metadata"]["name"]
        return self.request(
            *("PATCH", self._path_of(manifest, namespace, name)),
            query=tuple(query),
            body=manifest,
            content_type="application/apply-patch+yaml",
        )

    def create(
        self, manifest: Manifest, namespace: str | None = None, *, dry_run: bool = False
    ) -> Manifest:
        """Refused with reason `AlreadyExists` where there is one."""
        query = (("fieldManager", FIELD_MANAGER), *((("dryRun", "All"),) if dry_run else ()))
        return self.request("POST", self._path_of(manifest, namespace), query=query, body=manifest)

    def replace(self, manifest: Manifest, namespace: str | None = None) -> Manifest:
        """Refused with 409 where the object has changed since its resourceVersion was read."""
        path = self._path_of(manifest, namespace, manifest["metadata"]["name"])
        return self.request("PUT", path, query=(("fieldManager", FIELD_MANAGER),), body=manifest)

    def delete(
        self,
        api_version: str,
        kind: str,
        name: str,
        namespace: str | None = None,
        *,
        propagation: str = "Background",
        uid: str | None = None,
        dry_run: bool = False,
    ) -> bool:
        """False where there was nothing to delete.

        Args:
            uid: Delete only this very object, not one that took its name meanwhile.
        """
        options: Manifest = {"propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        path = self.resource(api_version, kind).path(namespace, name)
        query: Query = (("dryRun", "All"),) if dry_run else ()
        try:
            self.request("DELETE", path, query=query, body=options)
        except ControlPlaneRefused as exc:
            if exc.http_status == 404:
                return False
            raise
        return True

    def _path_of(
        self, manifest: Manifest, namespace: str | None = None, name: str | None = None
    ) -> str:
        found = self.resource(manifest["apiVersion"], manifest["kind"])
        return found.path(manifest["metadata"].get("namespace") or namespace, name)


def _selectors(labels: str, fields: str) -> Query:
    pairs = (("labelSelector", labels), ("fieldSelector", fields))
    return tuple((name, value) for name, value in pairs if value)


def _bringer(api_version: str) -> str:
    group = api_version.partition("/")[0]
    return BRINGERS.get(group, f"the operator of {group}")
