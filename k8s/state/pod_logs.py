"""Which pods have the lines that are asked for, and lines as people read them; pure."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from k8s.state.explain import CLUSTER_LABEL, NODE_TYPE_LABEL, pool_of
from k8s.state.findings import Manifest, dig, labels_of, name_of

APPLICATION = "sm4ll"
JOB_LABELS = ("batch.kubernetes.io/job-name", "job-name")
OPERATOR_LABEL = "app.kubernetes.io/name=kuberay-operator"
# Said in front of every line, or of no use to a person.
_HIDDEN = frozenset(
    {
        *("time", "level", "logger", "message", "deployment", "replica", "application", "source"),
        *("exception", "trace_id", "span_id", "component", "replica_id"),
    }
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What somebody asked to see; everything of Ray's pods where nothing is named."""

    expert: str | None = None
    deployment: str | None = None
    pool: str | None = None
    pod: str | None = None
    head: bool = False
    job: str | None = None
    operator: bool = False
    pattern: re.Pattern[str] | None = None

    def takes_pod(self, pod: Manifest) -> bool:
        labels = labels_of(pod)
        if self.operator:
            return labels.get("app.kubernetes.io/name") == "kuberay-operator"
        if self.pod is not None:
            return name_of(pod) == self.pod
        if self.job is not None:
            names = {labels.get(label, "") for label in JOB_LABELS}
            # A CronJob's Jobs have the time behind its name.
            return any(
                name == f"sm4ll-{self.job}" or name.startswith(f"sm4ll-{self.job}-")
                for name in names
            )
        if CLUSTER_LABEL not in labels:
            return False
        if self.head:
            return labels.get(NODE_TYPE_LABEL) == "head"
        if self.pool is not None:
            return pool_of(pod) == self.pool
        return True

    def takes_line(self, line: str) -> bool:
        if self.pattern is not None and not self.pattern.search(line):
            return False
        if self.expert is None and self.deployment is None:
            return True
        fields = parse_line(line)
        if self.deployment is not None:
            return deployment_of(fields) == self.deployment
        # Of its own replicas, and of whoever says that a line is of a request for it.
        return deployment_of(fields) == f"Expert-{self.expert}" or self.expert in (
            fields.get("version"),
            fields.get("expert"),
        )


def main_container(pod: Manifest) -> str | None:
    """The one to read: Ray's is the first, as KubeRay wants it."""
    name = dig(pod, "spec", "containers", 0, "name")
    return None if name is None else str(name)


def parse_line(line: str) -> dict[str, object]:
    """Fields of one of our lines; none where it is text."""
    if not line.startswith("{"):
        return {}
    try:
        fields = json.loads(line)
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def deployment_of(fields: dict[str, object]) -> str:
    """Serve's filter writes the application in front: `sm4ll_Router`."""
    application = fields.get("application") or APPLICATION
    return str(fields.get("deployment") or "").removeprefix(f"{application}_")


def short_name(pod: Manifest, several_clusters: bool) -> str:
    """Without what all of them have: `router-worker-x7k2`."""
    name, cluster = name_of(pod), labels_of(pod).get(CLUSTER_LABEL, "")
    if not cluster or not name.startswith(f"{cluster}-"):
        return name
    short = name.removeprefix(f"{cluster}-")
    return f"{cluster.rpartition('-')[2]} {short}" if several_clusters else short


@dataclass(frozen=True, slots=True)
class ReadLine:
    """One line, taken apart for a screen."""

    time: str
    level: str
    text: str
    details: str = ""
    stack: tuple[str, ...] = ()


def read_line(line: str) -> ReadLine:
    """A line of ours in its parts; any other as it is."""
    fields = parse_line(line)
    if "message" not in fields:
        return ReadLine("", "", line)
    where = deployment_of(fields) or str(fields.get("logger") or "")
    details = "  ".join(
        f"{name}={value}"
        for name, value in fields.items()
        if name not in _HIDDEN and value not in (None, "")
    )
    raised = fields.get("exception")
    stack = dig(raised, "stack") if isinstance(raised, dict) else None
    message = str(fields["message"])
    return ReadLine(
        time=str(fields.get("time") or "")[11:23],
        level=str(fields.get("level") or ""),
        text=f"{where.removeprefix('Expert-')}: {message}" if where else message,
        details=details,
        stack=tuple(map(str, stack or ())),
    )


def merge_lines(logs: Iterable[tuple[str, Sequence[str]]]) -> Iterator[tuple[str, str]]:
    """(pod, line) of several pods by time; a line without one stays behind the one before it."""
    keyed: list[tuple[str, str, str]] = []
    for pod, lines in logs:
        at = ""
        for line in lines:
            at = str(parse_line(line).get("time") or at)
            keyed.append((at, pod, line))
    keyed.sort(key=lambda one: one[0])
    return ((pod, line) for _, pod, line in keyed)
