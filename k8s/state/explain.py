"""Why a pod is not ready, in words, with what helps; pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from k8s.state.container_words import explain_restarts, explain_waiting
from k8s.state.findings import Finding, Manifest, Trouble, condition_of, dig, labels_of, name_of
from k8s.state.quantity import parse_time, tell_age, tell_since
from k8s.state.scheduling import explain_unschedulable

POOL_LABEL = "sm4ll.dev/pool"
GROUP_LABEL = "ray.io/group"
NODE_TYPE_LABEL = "ray.io/node-type"
CLUSTER_LABEL = "ray.io/cluster"
PROXY_PATH = "/-/healthz"
LATE_S = 30.0


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What else is known when a pod is judged; what may not be read is absent."""

    now_s: float
    events: Sequence[Manifest] = ()
    claims: Sequence[Manifest] = ()
    nodes: Sequence[Manifest] | None = None
    last_lines: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(pod, container) to the last line that it wrote before it ended."""


def pool_of(pod: Manifest) -> str:
    """The pool, the head, or what the pod belongs to otherwise."""
    labels = labels_of(pod)
    if labels.get(NODE_TYPE_LABEL) == "head":
        return "head"
    return (
        labels.get(POOL_LABEL)
        or labels.get(GROUP_LABEL)
        or labels.get("batch.kubernetes.io/job-name")
        or labels.get("job-name")
        or labels.get("app.kubernetes.io/name")
        or ""
    )


def is_ready(pod: Manifest) -> bool:
    return (
        condition_of(pod, "Ready").get("status") == "True"
        and dig(pod, "metadata", "deletionTimestamp") is None
    )


def explain_pod(pod: Manifest, around: Surroundings) -> Finding | None:
    """The first cause of its not being ready; None where nothing is to be said of it."""
    trouble = _explain(pod, around)
    if trouble is None:
        return None
    pool = pool_of(pod)
    return trouble.of(f"pod {name_of(pod)}" + (f" ({pool})" if pool else ""))


def _explain(pod: Manifest, around: Surroundings) -> Trouble | None:
    phase = dig(pod, "status", "phase")
    if dig(pod, "metadata", "deletionTimestamp") is not None:
        return _explain_ending(pod, around.now_s)
    if phase == "Succeeded":
        return None
    if phase == "Failed":
        return _explain_failed(pod)
    scheduled = condition_of(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return _explain_unscheduled(pod, scheduled, around)
    moved = condition_of(pod, "DisruptionTarget")
    if moved.get("status") == "True":
        return Trouble(
            "waiting",
            f"is being moved away: {moved.get('message') or moved.get('reason')}",
            "another pod takes its place; nothing, unless there is no room for it",
        )
    return (
        _explain_containers(pod, around)
        or _explain_unready(pod, around)
        or explain_restarts(pod, around.now_s)
    )


def _explain_ending(pod: Manifest, now_s: float) -> Trouble | None:
    # The control plane writes down when the grace period ends, not when it began.
    due_s = parse_time(dig(pod, "metadata", "deletionTimestamp")) or now_s
    if now_s <= due_s + LATE_S:
        left = tell_age(due_s - now_s)
        return Trouble("note", f"finishes its requests and ends, within {left}")
    late = tell_age(now_s - due_s)
    finalizers = dig(pod, "metadata", "finalizers") or []
    if finalizers:
        return Trouble(
            "waiting",
            f"should have gone {late} ago and is kept by the finalizer {', '.join(finalizers)}",
            "see why whoever set the finalizer does not take it off (for ray.io/...: the log of"
            " the KubeRay operator, `sm4ll k8s logs --operator`)",
        )
    node = dig(pod, "spec", "nodeName") or "its node"
    return Trouble(
        "waiting",
        f"should have gone {late} ago; {node} does not say that it has ended",
        f"`kubectl get node {node}`: when the node is gone for good, `kubectl delete pod"
        f" {name_of(pod)} --grace-period=0 --force`",
    )


def _explain_failed(pod: Manifest) -> Trouble | None:
    reason = dig(pod, "status", "reason") or ""
    message = (dig(pod, "status", "message") or "").strip()
    if reason == "Evicted":
        remedy = "a higher request (and limit) for what ran out, in configs/kubernetes.yaml"
        if "ephemeral-storage" in message:
            remedy = "a higher ephemeral-storage request, or the model cache on its own volume"
        return Trouble("waiting", f"was evicted: {message or 'without a reason'}", remedy)
    if reason:
        return Trouble(
            "waiting",
            f"ended: {message or reason} ({reason})",
            "KubeRay starts another; what stays behind goes with `kubectl delete pod`",
        )
    ended = explain_restarts(pod, 0.0)
    return ended or Trouble("waiting", f"failed: {message or 'without a reason'}")


def _explain_unscheduled(pod: Manifest, scheduled: Manifest, around: Surroundings) -> Trouble:
    message = str(scheduled.get("message") or "")
    since = tell_since(scheduled.get("lastTransitionTime"), around.now_s)
    if scheduled.get("reason") == "SchedulingGated":
        gates = ", ".join(gate["name"] for gate in dig(pod, "spec", "schedulingGates") or ())
        return Trouble(
            "waiting",
            f"is held back{since} by {gates or 'a scheduling gate'}",
            "with Kueue: the queue has no quota left, `kubectl get workloads`",
        )
    trouble = explain_unschedulable(message, pod, around.claims, around.nodes)
    grows = _last_event(pod, around.events, "TriggeredScaleUp", "NotTriggerScaleUp")
    says = f"has been waiting{since} for a node: {trouble.says}"
    if grows is not None and grows.get("reason") == "TriggeredScaleUp":
        return Trouble("waiting", f"{says}. A node is being added", "wait: new nodes take minutes")
    if grows is not None:
        says = f"{says}. The cluster autoscaler adds none"
    return Trouble(trouble.weight, says, trouble.remedy)


def _explain_containers(pod: Manifest, around: Surroundings) -> Trouble | None:
    """The first container that waits or has failed; init containers run before the others."""
    pulled = _last_pull(pod, around.events)
    for status in dig(pod, "status", "initContainerStatuses") or []:
        trouble = explain_waiting(pod, status, around.last_lines, pulled)
        if trouble is None and _runs_first(pod, status):
            trouble = _explain_init(status, around.now_s)
        if trouble is not None:
            return trouble
    for status in dig(pod, "status", "containerStatuses") or []:
        trouble = explain_waiting(pod, status, around.last_lines, pulled)
        if trouble is not None:
            return _with_mount(pod, status, trouble, around)
    return None


def _last_pull(pod: Manifest, events: Sequence[Manifest]) -> str:
    failed = [
        str(event.get("message"))
        for event in sorted(events_of(pod, events), key=event_time_s)
        if "pull image" in str(event.get("message"))
    ]
    return failed[-1] if failed else ""


def _runs_first(pod: Manifest, status: Manifest) -> bool:
    """Whether the others wait for its end: a sidecar's end is not waited for."""
    spec = _container(pod, str(status.get("name")), "initContainers")
    return spec.get("restartPolicy") != "Always" and dig(status, "state", "running") is not None


def _explain_init(status: Manifest, now_s: float) -> Trouble:
    name = status.get("name")
    since = tell_since(dig(status, "state", "running", "startedAt"), now_s)
    if name == "wait-gcs-ready":
        return Trouble(
            "waiting",
            f"has been waiting{since} for the head (init container wait-gcs-ready)",
            "see what is said of the head; a worker starts when the head answers",
        )
    return Trouble(
        "waiting", f"its init container {name} has been running{since}; the others wait for it"
    )


def _with_mount(
    pod: Manifest, status: Manifest, trouble: Trouble, around: Surroundings
) -> Trouble | None:
    """ContainerCreating alone says nothing: an event says what cannot be mounted."""
    if dig(status, "state", "waiting", "reason") not in ("ContainerCreating", "PodInitializing"):
        return trouble
    event = _last_event(pod, around.events, "FailedMount", "FailedAttachVolume")
    event = event or _last_event(pod, around.events, "FailedCreatePodSandBox")
    if event is None:
        return trouble
    message = " ".join(str(event.get("message") or "").split())
    remedy = "the volume and what makes it: `kubectl get pvc`, `kubectl describe pvc`"
    if "secret" in message or "configmap" in message:
        remedy = "make what is missing (`sm4ll k8s doctor` lists the Secrets that must exist)"
    elif event.get("reason") == "FailedCreatePodSandBox":
        remedy = "the node's network plug-in or runtime: `kubectl describe node`"
    return Trouble("waiting", f"cannot start: {message}", remedy)


def _explain_unready(pod: Manifest, around: Surroundings) -> Trouble | None:
    ready = condition_of(pod, "Ready")
    if ready.get("status") == "True":
        return None
    for status in dig(pod, "status", "containerStatuses") or []:
        if not status.get("ready") and dig(status, "state", "running") is not None:
            return _explain_probe(pod, status, around)
    since = tell_since(ready.get("lastTransitionTime"), around.now_s)
    if condition_of(pod, "PodScheduled").get("status") != "True":
        return Trouble("waiting", "waits for the scheduler to look at it")
    message = ready.get("message") or ready.get("reason") or "the node does not say why"
    return Trouble("waiting", f"has not been ready{since}: {message}")


def _explain_probe(pod: Manifest, status: Manifest, around: Surroundings) -> Trouble:
    name = str(status.get("name"))
    since = tell_since(condition_of(pod, "Ready").get("lastTransitionTime"), around.now_s)
    event = _last_event(pod, around.events, "Unhealthy")
    message = " ".join(str(event.get("message") or "").split()) if event else ""
    startup = "Startup probe" in message or status.get("started") is False
    probe = "startupProbe" if startup else "readinessProbe"
    asked = str(dig(_container(pod, name, "containers"), probe) or "")
    is_worker = labels_of(pod).get(NODE_TYPE_LABEL) == "worker"
    if is_worker and not startup and PROXY_PATH in asked and _raylet_answers(message):
        return Trouble(
            "note",
            f"has been idle{since}: no Serve replica runs on it, so it has no proxy. That is by"
            " design; the service sends it no requests",
        )
    kind = "startup" if startup else "readiness"
    said = f": {message}" if message else ""
    remedy = f"its log: `sm4ll k8s logs --pod {name_of(pod)}`"
    if is_worker:
        remedy = f"{remedy}; a worker is ready when its Ray node has joined the head"
    return Trouble(
        "waiting", f"{name} runs, its {kind} probe has been failing{since}{said}", remedy
    )


def _raylet_answers(message: str) -> bool:
    """The first half of KubeRay's probe prints `success`; without an event nobody knows better."""
    return not message or message.endswith("failed:") or "success" in message


def _container(pod: Manifest, name: str, kind: str) -> Manifest:
    for container in dig(pod, "spec", kind) or ():
        if container.get("name") == name:
            return dict(container)
    return {}


def _last_event(pod: Manifest, events: Sequence[Manifest], *reasons: str) -> Manifest | None:
    own = [event for event in events_of(pod, events) if event.get("reason") in reasons]
    return max(own, key=event_time_s, default=None)


def events_of(subject: Manifest, events: Sequence[Manifest]) -> list[Manifest]:
    """Events about it: by uid where both have one, as names come again."""
    uid, name = dig(subject, "metadata", "uid"), name_of(subject)
    return [
        event
        for event in events
        if dig(event, "involvedObject", "name") == name
        and (not uid or dig(event, "involvedObject", "uid") in (None, "", uid))
    ]


def event_time_s(event: Manifest) -> float:
    """When it was last seen; newer events count in `series`."""
    for path in (("series", "lastObservedTime"), ("lastTimestamp",), ("eventTime",)):
        at_s = parse_time(dig(event, *path))
        if at_s is not None:
            return at_s
    return parse_time(dig(event, "metadata", "creationTimestamp")) or 0.0
