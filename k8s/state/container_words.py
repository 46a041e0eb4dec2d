"""Why a container waits or has ended, in words, with what helps; pure."""

import re
from collections.abc import Mapping

from k8s.state.findings import Manifest, Trouble, Weight, dig, name_of
from k8s.state.quantity import count, parse_time, tell_age

# Source: POSIX shells (128 + signal) and Docker's 125-127.
EXIT_CODES: Mapping[int, str] = {
    126: "the command cannot be run",
    127: "there is no such command in the image",
    132: "an instruction that this CPU does not have",
    134: "it aborted itself",
    135: "bus error: often /dev/shm is too small",
    137: "killed (SIGKILL)",
    139: "segmentation fault",
    143: "told to end (SIGTERM)",
}
LOST_AFTER_RESTARTS = 3
RECENT_S = 3600.0
MAX_LINE = 200
_NAMED = re.compile(r'(secret|configmap) "?([\w./-]+)"? not found')
_KEY = re.compile(r"couldn't find key (\S+) in (Secret|ConfigMap) (\S+)")
_NOT_FOUND = ("not found", "manifest unknown", "name unknown", "does not exist", "404")
_REFUSED = ("unauthorized", "authentication required", "denied", "403", "401", "no basic auth")
_NETWORK = ("timeout", "no such host", "connection refused", "tls:", "eof", "429")


def explain_waiting(
    pod: Manifest,
    status: Manifest,
    last_lines: Mapping[tuple[str, str], str],
    pull_message: str = "",
) -> Trouble | None:
    """
    Args:
        status: of one container, as `containerStatuses` has it.
        pull_message: of the last event that a pull failed; the status alone may only say that it
            is tried again later.
    """
    waiting = dig(status, "state", "waiting") or {}
    ended = dig(status, "state", "terminated") or {}
    reason = str(waiting.get("reason") or "")
    message = str(waiting.get("message") or "")
    name = str(status.get("name"))
    if reason in ("ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull"):
        return _explain_pull(_image_of(pod, status), reason, f"{message} {pull_message}".strip())
    if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
        return _explain_config(name, message)
    if reason == "CrashLoopBackOff":
        return _explain_crashes(pod, status, last_lines)
    if ended and ended.get("exitCode"):
        said = tell_end(pod, name, ended, last_lines)
        return Trouble("waiting", f"{name} ended: {said}", _end_remedy(pod, name, ended))
    if reason == "PodInitializing":  # its init containers have been looked at before
        return Trouble("waiting", f"{name} waits for the init containers")
    if reason:
        words = {"ContainerCreating": "is being made (image, volumes)"}.get(reason, reason)
        return Trouble("waiting", f"{name} {words}" + (f": {message}" if message else ""))
    return None


def _explain_pull(image: str, reason: str, message: str) -> Trouble:
    lowered = message.lower().replace(image.lower(), "")
    if reason == "InvalidImageName":
        return Trouble("broken", f"{image} is no name of an image", _IMAGE_REMEDY)
    if reason == "ErrImageNeverPull":
        return Trouble(
            "broken",
            f"image {image} is not on the node, and must not be pulled (imagePullPolicy Never)",
            f"`kind load docker-image {image}`, or imagePullPolicy IfNotPresent",
        )
    # What a registry that hides what exists answers has both words: say both.
    refused = any(word in lowered for word in _REFUSED)
    if refused:
        hidden = " or does not exist" if "not exist" in lowered else ""
        return Trouble(
            "broken",
            f"image {image}: the registry refuses it without (other) credentials{hidden}",
            "`kubectl create secret docker-registry NAME ...` and name it in imagePullSecrets of"
            " the service account sm4ll-ray; or correct the name of the image",
        )
    if any(word in lowered for word in _NOT_FOUND):
        return Trouble("broken", f"image {image} does not exist in its registry", _IMAGE_REMEDY)
    if any(word in lowered for word in _NETWORK):
        return Trouble(
            "waiting",
            f"image {image}: the registry cannot be reached from the node ({_shorten(message)})",
            "the node's way to the registry (DNS, proxy, firewall); the kubelet tries again",
        )
    said = f" ({_shorten(message)})" if message else ""
    return Trouble("waiting", f"image {image} cannot be pulled{said}", _IMAGE_REMEDY)


_IMAGE_REMEDY = "push the image, or correct `image` in configs/kubernetes.yaml; `sm4ll k8s apply`"


def _explain_config(name: str, message: str) -> Trouble:
    key, named = _KEY.search(message), _NAMED.search(message)
    if key is not None:
        holder = key[3].split("/")[-1]
        return Trouble(
            "broken",
            f"{name} needs the key {key[1]} of the {key[2]} {holder}, which has none",
            f"add it: `kubectl edit {key[2].lower()} {holder}` (k8s/README.md lists the keys)",
        )
    if named is not None:
        kind = {"secret": "Secret", "configmap": "ConfigMap"}[named[1]]
        remedy = "`sm4ll k8s apply` makes it"
        if kind == "Secret":
            remedy = f"make it: `kubectl create secret generic {named[2]} --from-literal=KEY=VALUE`"
            remedy += "; `sm4ll k8s doctor` says which keys"
        says = f"{name} needs the {kind} {named[2]}, which does not exist"
        return Trouble("broken", says, remedy)
    if "runAsNonRoot" in message:
        return Trouble(
            "broken",
            f"{name} must not run as root, and its image says root",
            "an image whose USER is a number, or runAsUser in the pod's securityContext",
        )
    return Trouble("broken", f"{name} cannot be started: {_shorten(message)}")


def _explain_crashes(
    pod: Manifest, status: Manifest, last_lines: Mapping[tuple[str, str], str]
) -> Trouble:
    name = str(status.get("name"))
    ended = dig(status, "lastState", "terminated") or {}
    restarts = int(status.get("restartCount") or 0)
    said = tell_end(pod, name, ended, last_lines)
    weight: Weight = "broken" if restarts >= LOST_AFTER_RESTARTS else "waiting"
    says = f"{name} ends again and again ({count(restarts, 'restart')}): {said}"
    return Trouble(weight, says, _end_remedy(pod, name, ended))


def tell_end(
    pod: Manifest, name: str, ended: Manifest, last_lines: Mapping[tuple[str, str], str]
) -> str:
    """How it ended, and its last words where they are known."""
    if ended.get("reason") == "OOMKilled":
        limit = _memory_limit(pod, name)
        said = f"it needed more than its memory limit of {limit}" if limit else "out of memory"
        said = f"{said} (OOMKilled)"
    else:
        code = int(ended.get("exitCode") or 0)
        meaning = EXIT_CODES.get(code, "")
        said = f"exit code {code}" + (f", {meaning}" if meaning else "")
    line = last_lines.get((name_of(pod), name)) or _last_line(str(ended.get("message") or ""))
    return f'{said}; its last line: "{_shorten(line)}"' if line else said


def _end_remedy(pod: Manifest, name: str, ended: Manifest) -> str:
    if ended.get("reason") == "OOMKilled":
        return (
            "more memory for the pod in configs/kubernetes.yaml, or fewer replicas on it"
            " (`sm4ll plan` says what each needs)"
        )
    return f"its log before that: `sm4ll k8s logs --pod {name_of(pod)} --previous`"


def explain_restarts(pod: Manifest, now_s: float) -> Trouble | None:
    """Of a pod that runs: whether it ended not long ago, and why."""
    for status in dig(pod, "status", "containerStatuses") or []:
        last = dig(status, "lastState", "terminated") or {}
        ended = last or dig(status, "state", "terminated") or {}
        at_s = parse_time(ended.get("finishedAt"))
        if not ended or (now_s and at_s is not None and now_s - at_s > RECENT_S):
            continue
        name = str(status.get("name"))
        said = tell_end(pod, name, ended, {})
        if not now_s:
            return Trouble("waiting", f"{name} ended: {said}", _end_remedy(pod, name, ended))
        ago = "" if at_s is None else f" {tell_age(now_s - at_s)} ago"
        return Trouble(
            "note", f"runs again; {name} ended{ago}: {said}", _end_remedy(pod, name, ended)
        )
    return None


def _memory_limit(pod: Manifest, name: str) -> str:
    return str(dig(_spec_of(pod, name), "resources", "limits", "memory") or "")


def _image_of(pod: Manifest, status: Manifest) -> str:
    """As it was asked for: the status may have what the runtime made of it."""
    return str(_spec_of(pod, str(status.get("name"))).get("image") or status.get("image"))


def _spec_of(pod: Manifest, name: str) -> Manifest:
    for kind in ("containers", "initContainers"):
        for container in dig(pod, "spec", kind) or ():
            if container.get("name") == name:
                return dict(container)
    return {}


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_LINE else f"{text[: MAX_LINE - 1]}…"
