"""Objects as they change: a watch that survives what breaks watches."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from urllib3.exceptions import HTTPError

from k8s.control.api import ControlPlane
from k8s.control.connection import Manifest
from serve.errors import ControlPlaneRefused

STREAM_S = 300
SLACK_S = 15.0
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Event:
    """What happened to one object; `IDLE` when a stream ended and nothing need have happened."""

    kind: Literal["ADDED", "MODIFIED", "DELETED", "IDLE"]
    object: Manifest = field(default_factory=dict)


class _Expired(Exception):
    """The server has forgotten where we were (410 Gone)."""


class Watch:
    """All objects of a selection: first those that are there, then every change.

    A stream that breaks is taken up where it broke off; where the server has forgotten that
    moment (410), the objects are listed again and what differs is told as changes, so that nobody
    who follows sees a gap. Source: https://kubernetes.io/docs/reference/using-api/api-concepts/
    """

    def __init__(
        self,
        api: ControlPlane,
        api_version: str,
        kind: str,
        namespace: str | None = None,
        *,
        labels: str = "",
        fields: str = "",
        stream_s: int = STREAM_S,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        Args:
            stream_s: After so many seconds without anything to tell comes an `IDLE`.
        """
        self._api = api
        self._what = (api_version, kind, namespace)
        self._labels, self._fields = labels, fields
        self._stream_s = stream_s
        self._clock = clock
        self._known: dict[str, Manifest] = {}
        self._resource_version = ""
        self.num_breaks = 0

    def events(self, timeout_s: float | None = None) -> Iterator[Event]:
        """Until the time is over; for ever without one."""
        end_s = None if timeout_s is None else self._clock() + timeout_s
        pause_s = FIRST_PAUSE_S
        while end_s is None or self._clock() < end_s:
            if not self._resource_version:
                yield from self._list()
            try:
                for event in self._stream(end_s):
                    pause_s = FIRST_PAUSE_S
                    yield event
            except _Expired:
                self._resource_version = ""
            except (HTTPError, ValueError):
                self.num_breaks += 1
                self._api.sleep(pause_s)
                pause_s = min(2 * pause_s, MAX_PAUSE_S)
            else:
                yield Event("IDLE")

    def _list(self) -> Iterator[Event]:
        listing = self._api.list(*self._what, self._labels, self._fields)
        before, self._known = self._known, {_key(one): one for one in listing.items}
        self._resource_version = listing.resource_version
        for key, one in self._known.items():
            if key not in before:
                yield Event("ADDED", one)
            elif _version(before[key]) != _version(one):
                yield Event("MODIFIED", one)
        for key in before.keys() - self._known.keys():
            yield Event("DELETED", before[key])

    def _stream(self, end_s: float | None) -> Iterator[Event]:
        left_s = self._stream_s if end_s is None else min(self._stream_s, end_s - self._clock())
        stream_s = max(1, round(left_s))
        api_version, kind, namespace = self._what
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", self._resource_version),
            ("timeoutSeconds", str(stream_s)),
        ]
        query += [("labelSelector", self._labels)] if self._labels else []
        query += [("fieldSelector", self._fields)] if self._fields else []
        path = self._api.resource(api_version, kind).path(namespace)
        try:
            answer = self._api.open("GET", path, tuple(query), read_s=stream_s + SLACK_S)
        except ControlPlaneRefused as exc:
            if exc.http_status == 410:
                raise _Expired from exc
            raise
        with answer:
            for line in answer:
                if line.strip():
                    yield from self._take(json.loads(line))

    def _take(self, told: dict[str, Any]) -> Iterator[Event]:
        one = told["object"]
        if told["type"] == "ERROR":
            if one.get("code") == 410:
                raise _Expired
            raise ValueError(one.get("message", "the stream reports an error"))
        self._resource_version = _version(one)
        if told["type"] == "BOOKMARK":
            return
        if told["type"] == "DELETED":
            self._known.pop(_key(one), None)
        else:
            self._known[_key(one)] = one
        yield Event(told["type"], one)


def _key(one: Manifest) -> str:
    return str(one["metadata"]["uid"])


def _version(one: Manifest) -> str:
    return str(one["metadata"]["resourceVersion"])
