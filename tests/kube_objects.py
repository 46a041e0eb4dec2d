"""The memory of `tests/kube_server.py`: objects, their versions, and what was told of them."""

import base64
import copy
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.kube_fields import FieldConflicts, Fields, fill_defaults, merge_applied
from tests.kube_kinds import IMMUTABLE, KINDS, Asked, Manifest, Refused, selects

MAX_HISTORY = 1000


@dataclass
class Stored:
    """One object, and who owns which of its fields."""

    object: Manifest
    fields: Fields = field(default_factory=Fields)


Key = tuple[str, str, str, str]
"""apiVersion, plural, namespace, name."""
Change = tuple[int, str, Key, Manifest]


class KubeObjects:
    """Objects of any kind it was told about, and what a test does to them."""

    def __init__(self, missing: tuple[str, ...] = ()):
        self.kinds = [one for one in KINDS if not {one[0], one[0].partition("/")[0]} & set(missing)]
        self.objects: dict[Key, Stored] = {}
        self.asked: list[Asked] = []
        self.refuse_apply: Callable[[Manifest], str | None] = lambda manifest: None
        """Plays an admission webhook: why not, or None."""
        self.on_write: Callable[[str, Manifest], None] = lambda verb, manifest: None
        """Plays controllers: called after each write that is not a dry run."""
        self.kept: set[str] = set()
        """Kinds whose objects wait for `finish_deletion`, as if they had a finalizer."""
        self._history: list[Change] = []
        self._forgotten = 0
        self._counter = itertools.count(1000)
        self._now = 1000
        self._changed = threading.Condition(threading.RLock())
        self._num_drops = 0

    # What a test does

    def put(self, manifest: Manifest, namespace: str | None = None) -> Manifest:
        """As somebody else (`kubectl`) would: created, or replaced whole."""
        with self._changed:
            return self._write(self._key_of(manifest, namespace), manifest, "kubectl")

    def put_status(self, kind: str, name: str, status: Manifest, namespace: str = "sm4ll") -> None:
        """As a controller does: the status alone, without a new generation."""
        with self._changed:
            stored = self.find(kind, name, namespace)
            assert stored is not None, f"no {kind} {name}"
            stored.object["status"] = copy.deepcopy(status)
            self._tell("MODIFIED", self._key_of(stored.object, namespace), stored.object)

    def find(self, kind: str, name: str, namespace: str = "sm4ll") -> Stored | None:
        for (_, _, where, called), stored in self.objects.items():
            if stored.object["kind"] == kind and called == name and where in (namespace, ""):
                return stored
        return None

    def names(self, kind: str) -> list[str]:
        return sorted(key[3] for key, one in self.objects.items() if one.object["kind"] == kind)

    def remove(self, kind: str, name: str, namespace: str = "sm4ll") -> None:
        """As the garbage collector, or somebody else."""
        with self._changed:
            stored = self.find(kind, name, namespace)
            assert stored is not None, f"no {kind} {name}"
            self._drop(self._key_of(stored.object, namespace))

    finish_deletion = remove

    def writes(self) -> list[tuple[str, str]]:
        """(method, path) of everything that changed something, in order."""
        return [
            (one.method, one.path)
            for one in self.asked
            if one.method != "GET" and "dryRun" not in one.query and "reviews" not in one.path
        ]

    # What a request does

    def _read(self, key: Key) -> Manifest:
        if key not in self.objects:
            raise Refused(404, f'{key[1]} "{key[3]}" not found')
        return self._shown(self.objects[key])

    def _list(self, key: Key, kind: str, query: dict[str, str]) -> Manifest:
        found = [
            self._shown(stored)
            for at, stored in sorted(self.objects.items())
            if at[:2] == key[:2] and key[2] in ("", at[2]) and selects(query, stored.object)
        ]
        for one in found:  # as the real one: what a list's items are, the list says
            del one["apiVersion"], one["kind"]
        start, limit = int(query.get("continue", "0")), int(query.get("limit", "0")) or len(found)
        metadata = {"resourceVersion": str(self._now)}
        if start + limit < len(found):
            metadata["continue"] = str(start + limit)
        items = found[start : start + limit]
        return {
            "kind": f"{kind}List",
            "apiVersion": key[0],
            "metadata": metadata,
            "items": items,
        }

    def _apply(self, key: Key, asked: Asked) -> tuple[int, Manifest]:
        manager, force = asked.query["fieldManager"], asked.query.get("force") == "true"
        reason = self.refuse_apply(asked.body)
        if reason is not None:
            raise Refused(403, f'admission webhook "policy.example" denied the request: {reason}')
        stored = copy.deepcopy(self.objects.get(key)) or Stored({})
        try:
            merged = merge_applied(stored.object, stored.fields, asked.body, manager, force)
        except FieldConflicts as exc:
            causes = tuple(
                {"reason": "FieldManagerConflict", "message": f'conflict with "{who}"', "field": at}
                for at, who in exc.found
            )
            told = f"Apply failed with {len(causes)} conflict(s): {causes[0]['message']}"
            raise Refused(409, told, causes=causes) from exc
        self._check_immutable(key, merged)
        if "dryRun" in asked.query:
            return 200, self._dressed(key, merged, stored.fields)
        existed = key in self.objects
        written = self._write(key, merged, manager, stored.fields)
        return (200 if existed else 201), written

    def _create(self, key: Key, asked: Asked) -> tuple[int, Manifest]:
        metadata = asked.body["metadata"]
        name = metadata.get("name") or f"{metadata['generateName']}{next(self._counter)}"
        key = (*key[:3], name)
        if key in self.objects:
            raise Refused(409, f'{key[1]} "{name}" already exists', "AlreadyExists")
        body = {**asked.body, "metadata": {**metadata, "name": name}}
        if "dryRun" in asked.query:
            return 201, self._dressed(key, body, Fields())
        return 201, self._write(key, body, asked.query.get("fieldManager", "unknown"))

    def _replace(self, key: Key, asked: Asked) -> tuple[int, Manifest]:
        here = self._read(key)
        wanted = asked.body["metadata"].get("resourceVersion")
        if wanted not in (None, here["metadata"]["resourceVersion"]):
            raise Refused(409, "the object has been modified; please apply your changes to it")
        self._check_immutable(key, asked.body)
        return 200, self._write(key, asked.body, asked.query.get("fieldManager", "unknown"))

    def _delete(self, key: Key, asked: Asked) -> tuple[int, Manifest]:
        here = self._read(key)
        uid = (asked.body or {}).get("preconditions", {}).get("uid")
        if uid not in (None, here["metadata"]["uid"]):
            raise Refused(409, "the UID in the precondition does not match")
        if "dryRun" in asked.query:
            return 200, here
        if here["kind"] in self.kept:
            stored = self.objects[key]
            stored.object["metadata"]["deletionTimestamp"] = "2026-11-26T00:00:00Z"
            self._tell("MODIFIED", key, stored.object)
        else:
            self._drop(key)
        self.on_write("DELETE", here)
        return 200, {"kind": "Status", "apiVersion": "v1", "status": "Success"}

    def _check_immutable(self, key: Key, wanted: Manifest) -> None:
        before = self.objects.get(key)
        path = IMMUTABLE.get(wanted["kind"])
        if before is None or path is None:
            return
        old, new = before.object, fill_defaults(copy.deepcopy(wanted))
        for step in path:
            old, new = old.get(step, {}), new.get(step, {})
        if old != new:
            raise Refused(422, f"{'.'.join(path)}: Invalid value: field is immutable")

    def _key_of(self, manifest: Manifest, namespace: str | None = None) -> Key:
        metadata, kind = manifest["metadata"], manifest["kind"]
        for api_version, called, plural, namespaced in self.kinds:
            if (api_version, called) == (manifest["apiVersion"], kind):
                where = metadata.get("namespace") or namespace or "sm4ll"
                return api_version, plural, where if namespaced else "", metadata["name"]
        raise KeyError(kind)

    def _dressed(self, key: Key, manifest: Manifest, fields: Fields) -> Manifest:
        """With all that the server adds."""
        before = self.objects.get(key)
        one = fill_defaults(copy.deepcopy(manifest))
        old = before.object["metadata"] if before else {}
        metadata = one["metadata"]
        metadata["name"] = key[3]
        if key[2]:
            metadata["namespace"] = key[2]
        is_same = before is not None and before.object.get("spec") == one.get("spec")
        generation = old.get("generation", 0)
        metadata["uid"] = old.get("uid") or f"uid-{next(self._counter)}"
        metadata["creationTimestamp"] = old.get("creationTimestamp", "2026-11-26T00:00:00Z")
        metadata["generation"] = generation if is_same else generation + 1
        metadata["resourceVersion"] = old.get("resourceVersion", "")
        metadata["managedFields"] = fields.as_managed_fields(one["apiVersion"])
        if before and "status" in before.object and "status" not in one:
            one["status"] = copy.deepcopy(before.object["status"])
        if one["kind"] == "Secret" and "stringData" in one:
            coded = {k: base64.b64encode(v.encode()).decode() for k, v in one["stringData"].items()}
            one["data"] = {**one.get("data", {}), **coded}
            del one["stringData"]
        return one

    def _write(
        self, key: Key, manifest: Manifest, manager: str, fields: Fields | None = None
    ) -> Manifest:
        if fields is None:
            before = self.objects.get(key)
            fields = before.fields if before else Fields()
            fields.own_all(manager, manifest, before.object if before else {})
        one = self._dressed(key, manifest, fields)
        is_new = key not in self.objects
        had = {} if is_new else self.objects[key].object
        if not is_new and _bare(had) == _bare(one):
            self.objects[key].fields = fields  # as the real one: no change, no new version
            return self._shown(self.objects[key])
        self.objects[key] = Stored(one, fields)
        self._tell("ADDED" if is_new else "MODIFIED", key, one)
        self.on_write("POST" if is_new else "PATCH", one)
        return self._shown(self.objects[key])

    def _shown(self, stored: Stored) -> Manifest:
        return copy.deepcopy(stored.object)

    def _drop(self, key: Key) -> None:
        one = self.objects.pop(key).object
        self._tell("DELETED", key, one)
        if one["kind"] == "Namespace":
            for inside in [at for at in self.objects if at[2] == key[3]]:
                self._drop(inside)
        uid = one["metadata"]["uid"]
        for at, stored in list(self.objects.items()):
            owners = stored.object["metadata"].get("ownerReferences", [])
            if at in self.objects and any(owner["uid"] == uid for owner in owners):
                self._drop(at)

    def _tell(self, event: str, key: Key, one: Manifest) -> None:
        self._now += 1
        one["metadata"]["resourceVersion"] = str(self._now)
        self._history = [*self._history[-MAX_HISTORY:], (self._now, event, key, copy.deepcopy(one))]
        self._changed.notify_all()


def _bare(one: Manifest) -> Manifest:
    hidden = ("managedFields", "resourceVersion", "generation")
    return {**one, "metadata": {k: v for k, v in one["metadata"].items() if k not in hidden}}
