"""What a RayService, clusters, Serve applications, Jobs and claims say of themselves; pure."""

import re
from collections.abc import Iterator, Sequence

from k8s.state.explain import event_time_s, events_of
from k8s.state.findings import (
    INSTALL_OPERATOR,
    Finding,
    Manifest,
    Trouble,
    condition_of,
    dig,
    name_of,
)
from k8s.state.quantity import parse_time, tell_age, tell_since

UNSEEN_S = 60.0
MAX_GIST = 240
DOCTOR = "`sm4ll k8s doctor` looks for it"
# The line of a traceback that says what it was: `ValueError: ...`, `ray.exceptions.X: ...`.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*(?:Error|Exception|Invalid|Failed)): .+")


def gist(message: str) -> str:
    """What it says first, and the exception of a traceback where there is one."""
    lines = [line.strip() for line in _COLOUR.sub("", message).splitlines() if line.strip()]
    if not lines:
        return ""
    causes = [line for line in lines[1:] if _EXCEPTION.match(line)]
    said = lines[0]
    if causes:
        # Serve's "This may be due to ..." is a guess; the exception knows.
        said = f"{said.partition('. ')[0].rstrip(':.')}: {causes[-1]}"
    return said if len(said) <= MAX_GIST else f"{said[: MAX_GIST - 1]}…"


def explain_service(
    service: Manifest, events: Sequence[Manifest], now_s: float
) -> Iterator[Finding]:
    subject = f"RayService {name_of(service)}"
    if dig(service, "metadata", "deletionTimestamp") is not None:
        yield Finding("note", subject, "is being deleted")
    trouble = _explain_unseen(service, now_s) or _explain_conditions(service, now_s)
    if trouble is not None:
        yield trouble.of(subject)
    for reason, trouble in _explain_events(service, events, now_s):
        yield trouble.of(f"{subject} ({reason})")
    for status_name in ("activeServiceStatus", "pendingServiceStatus"):
        yield from explain_applications(dig(service, "status", status_name) or {})


def _explain_unseen(service: Manifest, now_s: float) -> Trouble | None:
    """A namespace that no operator watches: nothing ever happens, and nothing says so."""
    age_s = now_s - (parse_time(dig(service, "metadata", "creationTimestamp")) or now_s)
    generation = dig(service, "metadata", "generation") or 1
    observed = dig(service, "status", "observedGeneration")
    if dig(service, "spec", "managedBy") not in (None, "ray.io/kuberay-operator"):
        who = dig(service, "spec", "managedBy")
        return Trouble("note", f"is left to {who} (spec.managedBy); KubeRay does not touch it")
    if observed is None and not dig(service, "status", "conditions"):
        if age_s <= UNSEEN_S:
            return Trouble("waiting", "is new; the KubeRay operator has not looked at it yet")
        return Trouble(
            "broken",
            f"nobody has looked at it for {tell_age(age_s)}: no KubeRay operator runs, or it does"
            " not watch this namespace",
            f"install the operator ({INSTALL_OPERATOR}), or add the namespace to its"
            f" watchNamespace; {DOCTOR}",
        )
    if observed is not None and observed < generation:
        return Trouble("waiting", "the last change has not been looked at by the operator yet")
    return None


def _explain_conditions(service: Manifest, now_s: float) -> Trouble | None:
    suspended = condition_of(service, "Suspended")
    if suspended.get("status") == "True":
        return Trouble("note", "is suspended: no pods run", "spec.suspend: false, and apply")
    if condition_of(service, "Suspending").get("status") == "True":
        return Trouble("waiting", "is being suspended: its pods are being deleted")
    if condition_of(service, "RollbackInProgress").get("status") == "True":
        since = _since(condition_of(service, "RollbackInProgress"), now_s)
        return Trouble("waiting", f"has been going back to the cluster of before{since}")
    ready = condition_of(service, "Ready")
    if not ready or ready.get("status") == "True":
        return None
    return _explain_unready(service, ready, _since(ready, now_s))


def _explain_unready(service: Manifest, ready: Manifest, since: str) -> Trouble:
    reason, message = str(ready.get("reason") or ""), gist(str(ready.get("message") or ""))
    if reason == "InitializingTimeout":
        return Trouble(
            "broken",
            f"was not ready in the time of ray.io/initializing-timeout, and KubeRay gave up: "
            f"{message}",
            "delete it and apply again (`sm4ll k8s delete`, `sm4ll k8s apply`): KubeRay does not"
            " try again",
        )
    if reason == "ValidationFailed":
        return Trouble("broken", f"KubeRay refuses it: {message}", "correct it and apply again")
    if reason == "Initializing":
        return Trouble("waiting", f"has been starting{since}: the first cluster is not ready yet")
    if reason == "ZeroServeEndpoints":
        return Trouble(
            "waiting",
            f"no pod has answered requests{since}: no worker has a ready Serve proxy",
            "see what is said of the pods and applications",
        )
    return Trouble("waiting", f"has not been ready{since}: {message or reason}")


def _since(condition: Manifest, now_s: float) -> str:
    return tell_since(condition.get("lastTransitionTime"), now_s)


# Reasons of KubeRay's own events that say why nothing goes on. Source: KubeRay v1.7
# ray-operator/controllers/ray/utils/constant.go.
_EVENTS = re.compile(r"Invalid|Failed")
RECENT_EVENT_S = 600.0


def _explain_events(
    service: Manifest, events: Sequence[Manifest], now_s: float
) -> Iterator[tuple[str, Trouble]]:
    """The last warning of each kind, of the last minutes."""
    latest: dict[str, Manifest] = {}
    for event in sorted(events_of(service, events), key=event_time_s):
        recent = now_s - event_time_s(event) < RECENT_EVENT_S
        if event.get("type") == "Warning" and recent:
            latest[str(event.get("reason"))] = event
    for reason, event in latest.items():
        if _EVENTS.search(reason):
            message = gist(str(event.get("message") or ""))
            if reason.startswith("Invalid"):
                yield reason, Trouble("broken", message, "correct it and apply again")
            else:
                yield reason, Trouble("waiting", message, "the operator tries again")


def explain_applications(status: Manifest) -> Iterator[Finding]:
    """
    Args:
        status: `activeServiceStatus` or `pendingServiceStatus` of a RayService.
    """
    cluster = status.get("rayClusterName") or ""
    for app_name, app in sorted((status.get("applicationStatuses") or {}).items()):
        bad = sorted(
            (name, deployment)
            for name, deployment in (app.get("serveDeploymentStatuses") or {}).items()
            if deployment.get("status") != "HEALTHY"
        )
        subject = f"application {app_name}" + (f" on {cluster}" if cluster else "")
        trouble = _explain_application(app, has_cause=bool(bad))
        if trouble is not None:
            yield trouble.of(subject)
        for name, deployment in bad:
            yield _explain_deployment(name, deployment).of(name)


def _explain_application(app: Manifest, has_cause: bool) -> Trouble | None:
    state, message = str(app.get("status") or ""), gist(str(app.get("message") or ""))
    said = f": {message}" if message and not has_cause else ""
    if state == "DEPLOY_FAILED":
        return Trouble(
            "broken",
            f"could not be deployed{said or '; its deployments say why'}",
            "correct what it says and apply again; until then an upgrade does not switch over",
        )
    if state == "UNHEALTHY":
        return Trouble("waiting", f"is unhealthy{said}", "`sm4ll k8s logs --pool router`")
    if state in ("DEPLOYING", "NOT_STARTED") and not has_cause:
        return Trouble("waiting", f"is being deployed{said}")
    if state == "DELETING":
        return Trouble("note", "is being deleted")
    return None


def _explain_deployment(name: str, deployment: Manifest) -> Trouble:
    state, message = str(deployment.get("status") or ""), str(deployment.get("message") or "")
    said = f": {gist(message)}" if message else ""
    if state == "DEPLOY_FAILED":
        tries = _TRIES.match(gist(message))
        says = f"its replicas do not start{said}"
        if tries is not None:
            says = f"its replicas have failed to start {tries[1]} times: {tries[2]}"
        return Trouble(
            "broken",
            says,
            f"its log says more: `sm4ll k8s logs {_log_option(name)} --grep ERROR`",
        )
    if state == "UNHEALTHY":
        return Trouble("waiting", f"a replica fails{said}", "Serve replaces it; see its log")
    if "taken more than" in message and "scheduled" in message:
        return Trouble("waiting", _tell_unscheduled(message), "see what is said of the pods")
    if state in ("UPSCALING", "DOWNSCALING"):
        words = "is given more replicas" if state == "UPSCALING" else "is given fewer replicas"
        return Trouble("note", f"{words}{said}")
    return Trouble("waiting", f"starts or changes replicas ({state or 'unknown'}){said}")


def _log_option(deployment: str) -> str:
    kind, _, name = deployment.partition("-")
    if kind == "Expert":
        return f"--expert {name}"
    return f"--deployment {deployment}"


_TRIES = re.compile(r"The deployment failed to start (\d+) times in a row[:.] (.+)")
_REQUIRED = re.compile(r"Resources required for each replica: (\{.*?\}|\[.*?\])")
_REPLICAS = re.compile(r"has (\d+) replicas? that ha")


def _tell_unscheduled(message: str) -> str:
    """Serve's own words are long, and tell to ask `ray status`."""
    number, required = _REPLICAS.search(message), _REQUIRED.search(message)
    said = f"{number[1]} replicas wait" if number and number[1] != "1" else "a replica waits"
    needs = f", each needs {required[1]}" if required else ""
    return f"{said} for room on a Ray node{needs}"


def explain_cluster(cluster: Manifest) -> Iterator[Finding]:
    """What a RayCluster says of pods that it may not make: quota, admission."""
    subject = f"RayCluster {name_of(cluster)}"
    failure = condition_of(cluster, "ReplicaFailure")
    if failure.get("status") == "True":
        yield explain_refusal(str(failure.get("message") or failure.get("reason"))).of(subject)
    state = dig(cluster, "status", "state")
    if state == "failed":
        yield Finding("broken", subject, f"failed: {dig(cluster, 'status', 'reason') or ''}")


_QUOTA = re.compile(
    r"exceeded quota: ([\w.-]+), requested: (\S+?), used: (\S+?), limited: (\S+?)(?:$|[\s;\"])"
)
_MUST = re.compile(r"failed quota: ([\w.-]+): must specify (.+)")


def explain_refusal(message: str) -> Trouble:
    """Why the API server takes no pod."""
    quota, must = _QUOTA.search(message), _MUST.search(message)
    if quota is not None:
        name, asked, used, limit = quota.groups()
        return Trouble(
            "waiting",
            f"a pod is refused by the quota {name}: it asks for {asked}, {used} is in use,"
            f" {limit} is the limit",
            "a higher quota (ResourceQuota), or fewer replicas; during an upgrade two clusters run"
            " side by side",
        )
    if must is not None:
        return Trouble(
            "broken",
            f"a pod is refused by the quota {must[1]}: it must say {must[2]}",
            "give every container these in configs/kubernetes.yaml, or a LimitRange",
        )
    if "PodSecurity" in message:
        return Trouble(
            "broken",
            f"a pod is refused by the namespace's pod security: {gist(message)}",
            "see the label pod-security.kubernetes.io/enforce of the namespace",
        )
    return Trouble("waiting", f"a pod is refused: {gist(message)}")


def explain_job(job: Manifest, pods: Sequence[Finding]) -> Finding | None:
    """
    Args:
        pods: what is said of its pods; the cause is theirs.
    """
    subject = f"Job {name_of(job)}"
    failed = condition_of(job, "Failed")
    if failed.get("status") != "True":
        return None
    short = name_of(job).removeprefix("sm4ll-")
    cause = f"; {pods[0].says}" if pods else ""
    reason = {
        "BackoffLimitExceeded": "failed on every try",
        "DeadlineExceeded": "took too long",
    }.get(str(failed.get("reason")), f"failed: {failed.get('message') or failed.get('reason')}")
    remedy = f"`sm4ll k8s logs --job {short}`, then apply again"
    return Finding("broken", subject, f"{reason}{cause}", remedy)


def explain_claim(claim: Manifest, events: Sequence[Manifest]) -> Finding | None:
    """Why a PersistentVolumeClaim has no volume."""
    if dig(claim, "status", "phase") == "Bound":
        return None
    own = sorted(events_of(claim, events), key=event_time_s)
    kind = dig(claim, "spec", "storageClassName")
    named = f"storage class {kind}" if kind else "the default storage class"
    if own and own[-1].get("reason") == "WaitForFirstConsumer":
        return None  # its pod says what it waits for
    message = gist(str(own[-1].get("message") or "")) if own else "nothing is said of why"
    if dig(claim, "status", "phase") == "Lost":
        message = "its volume is gone"
    if "no persistent volumes available" in message or "no storage class is set" in message:
        message = f"no volume fits and {named} makes none"
    remedy = "a storage class that can make it (`kubectl get storageclass`)"
    if "ReadWriteMany" in (dig(claim, "spec", "accessModes") or ()):
        remedy = f"{remedy}, with ReadWriteMany: NFS, CephFS, EFS, Filestore, Azure Files"
    return Finding("waiting", f"claim {name_of(claim)} ({named})", message, remedy)
