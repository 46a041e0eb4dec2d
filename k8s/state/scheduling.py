"""Why the scheduler finds no node for a pod: its message, taken apart and said in words."""

import re
from collections.abc import Mapping, Sequence

from k8s.state.findings import Manifest, Trouble, dig, name_of
from k8s.state.quantity import count, parse_quantity, tell_amount

# "0/5 nodes are available: 1 node(s) had untolerated taint {a: }, 2 Insufficient cpu. preemption:
# 0/5 nodes are available: ...". Source: kube-scheduler framework.FitError (v1.32).
_HEAD = re.compile(r"^\s*(\d+)/(\d+) nodes are available:\s*(.*)$", re.DOTALL)
_PREEMPTION = re.compile(r"\.?\s*preemption:.*$", re.DOTALL)
_REASON = re.compile(r"(\d+) (.*?)(?=, \d+ |$)", re.DOTALL)
_TAINT = re.compile(r"untolerated taint(?:\(s\))? \{([^}]*)\}")


def requests_of(pod: Manifest) -> dict[str, float]:
    """What the scheduler must find: the sum of the containers, or the largest init container."""
    total: dict[str, float] = {}
    for container in dig(pod, "spec", "containers") or ():
        for resource, text in _requests(container).items():
            total[resource] = total.get(resource, 0.0) + parse_quantity(text)
    for container in dig(pod, "spec", "initContainers") or ():
        always = container.get("restartPolicy") == "Always"
        for resource, text in _requests(container).items():
            amount = parse_quantity(text)
            before = total.get(resource, 0.0)
            total[resource] = before + amount if always else max(before, amount)
    return total


def _requests(container: Manifest) -> dict[str, object]:
    # What has a limit and no request asks for its limit (the API server writes it down so).
    limits = dict(dig(container, "resources", "limits") or {})
    return {**limits, **(dig(container, "resources", "requests") or {})}


def explain_unschedulable(
    message: str, pod: Manifest, claims: Sequence[Manifest], nodes: Sequence[Manifest] | None
) -> Trouble:
    """
    Args:
        nodes: None where this user may not read them.
    """
    unbound = [claim for claim in claims if dig(claim, "status", "phase") != "Bound"]
    if "PersistentVolumeClaim" in message or "persistentvolumeclaim" in message:
        return _explain_claim(message, pod, claims, unbound)
    head = _HEAD.match(message)
    if head is None:
        return Trouble("waiting", f"no node takes it: {message or 'the scheduler says nothing'}")
    reasons = _REASON.findall(_PREEMPTION.sub("", head[3]).rstrip(". "))
    if not reasons:
        return Trouble("waiting", f"no node takes it: {head[3]}")
    asked = requests_of(pod)
    said = [_explain_reason(int(number), reason, pod, asked, nodes) for number, reason in reasons]
    says = f"none of {count(int(head[2]), 'node')} takes it: " + "; ".join(says for says, _ in said)
    # The node that came nearest is the one worth a remedy: it lacks room, the others do not fit.
    short = [remedy for (_, reason), (_, remedy) in zip(reasons, said, strict=True) if _is(reason)]
    remedies = short or [remedy for _, remedy in said if remedy]
    return Trouble("waiting", says, " Or: ".join(dict.fromkeys(remedies)))


def _is(reason: str) -> bool:
    return reason.startswith("Insufficient")


def _explain_reason(
    number: int,
    reason: str,
    pod: Manifest,
    asked: Mapping[str, float],
    nodes: Sequence[Manifest] | None,
) -> tuple[str, str]:
    """What it says, and what helps."""
    taint = _TAINT.search(reason)
    if reason.startswith("Insufficient "):
        return _explain_insufficient(number, reason.removeprefix("Insufficient "), asked, nodes)
    if taint is not None:
        name = taint[1].strip().rstrip(":").strip()
        if "control-plane" in name or "master" in name:
            return f"{number} {_is_are(number)} of the control plane", ""
        return (
            f"{number} {_has_have(number)} the taint {name}, which it does not tolerate",
            f"let the pool tolerate {name} (`tolerations` of its GPU product or pool in "
            "configs/kubernetes.yaml), or take the taint off the node",
        )
    for known, words, remedy in _KNOWN:
        if known in reason:
            wanted = _wanted_labels(pod)
            verb = words.format(is_are=_is_are(number), has_have=_has_have(number), wanted=wanted)
            return f"{number} {verb}", remedy.format(wanted=wanted)
    return f"{number}: {reason.strip()}", ""


_KNOWN: tuple[tuple[str, str, str], ...] = (
    (
        "node affinity/selector",
        "{has_have} not the labels it asks for ({wanted})",
        "a node with {wanted}; `kubectl get nodes -L nvidia.com/gpu.product` shows what there is."
        " GPU products are named in configs/kubernetes.yaml as the nodes name them",
    ),
    (
        "topology spread",
        "would hold too many of its kind (topology spread)",
        "more nodes or zones",
    ),
    ("anti-affinity", "{has_have} a pod beside which it must not run", "more nodes"),
    ("were unschedulable", "{is_are} cordoned", "`kubectl uncordon NODE` when the work on it ends"),
    ("Too many pods", "{has_have} as many pods as a node may have", "more nodes"),
    (
        "volume node affinity conflict",
        "cannot reach its volume, which lies in another zone or on another node",
        "a storage class that is not bound to one node or zone, or nodes where the volume is",
    ),
    (
        "available persistent volumes",
        "{has_have} no volume for its claim",
        "a storage class that makes volumes, `kubectl get storageclass`",
    ),
    ("free ports", "{has_have} its host port taken", ""),
)


def _explain_insufficient(
    number: int, resource: str, asked: Mapping[str, float], nodes: Sequence[Manifest] | None
) -> tuple[str, str]:
    wants = asked.get(resource, 0.0)
    amount = tell_amount(resource, wants)
    says = f"{number} {_has_have(number)} too little {resource} free (it asks for {amount}"
    largest = _largest(resource, nodes)
    if largest is None:
        return f"{says})", _more(resource)
    if largest < wants:
        most = tell_amount(resource, largest)
        remedy = f"a node with {amount} {resource}, or a smaller pod in configs/kubernetes.yaml"
        if largest == 0:
            remedy = f"nodes that offer {resource} (`sm4ll k8s doctor` says what is offered)"
        return f"{says}, the largest node has {most} in all)", remedy
    return f"{says}, others use what the nodes have)", _more(resource)


def _more(resource: str) -> str:
    return (
        f"more nodes with {resource}, fewer replicas (max_replicas in the family), or wait until"
        " others end; `sm4ll k8s doctor` shows what is free"
    )


def _largest(resource: str, nodes: Sequence[Manifest] | None) -> float | None:
    if not nodes:
        return None
    return max(parse_quantity(dig(node, "status", "allocatable", resource)) for node in nodes)


def _wanted_labels(pod: Manifest) -> str:
    wanted = [f"{key}={value}" for key, value in (dig(pod, "spec", "nodeSelector") or {}).items()]
    terms = dig(
        pod,
        *("spec", "affinity", "nodeAffinity"),
        *("requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"),
    )
    for term in terms or ():
        for rule in term.get("matchExpressions") or ():
            values = "|".join(map(str, rule.get("values") or ()))
            wanted.append(f"{rule.get('key')} {rule.get('operator')} {values}".strip())
    return ", ".join(wanted) or "see nodeSelector and affinity of the pod"


def _explain_claim(
    message: str, pod: Manifest, claims: Sequence[Manifest], unbound: Sequence[Manifest]
) -> Trouble:
    mounted = {
        dig(volume, "persistentVolumeClaim", "claimName")
        for volume in dig(pod, "spec", "volumes") or ()
    } - {None}
    absent = sorted(mounted - {name_of(claim) for claim in claims})
    if "not found" in message or (absent and claims):
        named = ", ".join(absent) or message
        return Trouble(
            "broken",
            f"its PersistentVolumeClaim does not exist: {named}",
            "`sm4ll k8s apply` makes the claims; `kubectl get pvc` shows which there are",
        )
    named = ", ".join(name_of(claim) for claim in unbound if name_of(claim) in mounted)
    return Trouble(
        "waiting",
        f"its PersistentVolumeClaim {named or '(which is not said)'} has no volume yet",
        "see what is said of the claim; a storage class must be able to make it",
    )


def _is_are(number: int) -> str:
    return "is" if number == 1 else "are"


def _has_have(number: int) -> str:
    return "has" if number == 1 else "have"
