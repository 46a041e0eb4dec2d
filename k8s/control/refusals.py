"""What Kubernetes refused, as our errors: the detail says what, the remedy what helps."""

import json

from serve.errors import ControlPlaneRefused, ControlPlaneUnreachable, FieldConflict

Causes = tuple[tuple[str, str], ...]


def unreachable(host: str, why: str) -> ControlPlaneUnreachable:
    return ControlPlaneUnreachable(
        f"The Kubernetes API at {host} does not answer: {why}",
        remedy="see that the cluster runs and that the kubeconfig's context is the one you mean "
        "(--context, SM4LL_KUBECONFIG); run the command again, it goes on where it stopped",
    )


def from_status(http_status: int, body: str | bytes, what: str) -> ControlPlaneRefused:
    """The error for a `Status` body, or for what a proxy in between wrote instead of one.

    Source: https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/status/
    """
    text = body.decode(errors="replace") if isinstance(body, bytes) else body
    try:
        status = json.loads(text)
    except ValueError:
        status = {}
    if not isinstance(status, dict):
        status = {}
    reason = str(status.get("reason", ""))
    message = str(status.get("message") or text.strip()[:300] or "without a word")
    found = (status.get("details") or {}).get("causes") or []
    causes = tuple((str(one.get("field", "")), str(one.get("message", ""))) for one in found)
    is_owned = any(one.get("reason") == "FieldManagerConflict" for one in found)
    kind = FieldConflict if http_status == 409 and is_owned else ControlPlaneRefused
    return kind(
        f"Kubernetes refused {what} ({http_status} {reason}".rstrip() + f"): {message}",
        remedy=_remedy(http_status, reason, is_owned, causes),
        http_status=http_status,
        reason=reason,
        causes=causes,
    )


def _remedy(http_status: int, reason: str, is_owned: bool, causes: Causes) -> str:
    if is_owned:
        fields = ", ".join(field for field, _ in causes[:3])
        return (
            f"agree with whoever runs that manager; --force-conflicts takes the fields over "
            f"({fields}{' and more' if len(causes) > 3 else ''})"
        )
    if http_status == 401:
        return "sign in again (your provider's login command), or renew the kubeconfig's token"
    if http_status == 403 and "quota" not in reason.lower():
        return "ask who runs the cluster for this right; `sm4ll k8s doctor` lists what is needed"
    if http_status == 422:
        return "change what it names; an immutable field needs the object to be deleted first"
    if http_status == 429 or http_status >= 500:
        return "the API server is not well: try again later"
    return ""
