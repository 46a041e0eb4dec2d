"""Which Secrets the objects of an overlay refer to, and which keys of them; pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from k8s.state.findings import Manifest, dig, name_of

TLS_KEYS = ("tls.crt", "tls.key")
PULL_KEYS = (".dockerconfigjson",)
RAY_TOKEN_KEYS = ("auth_token",)


@dataclass(frozen=True, slots=True)
class SecretNeed:
    """One Secret with all that is wanted of it."""

    name: str
    keys: tuple[str, ...]
    optional_keys: tuple[str, ...]
    is_optional: bool
    """Nothing stops where it is absent."""


@dataclass(frozen=True, slots=True)
class _Reference:
    name: str
    keys: tuple[str, ...]
    is_optional: bool


def find_secret_needs(objects: Sequence[Manifest]) -> list[SecretNeed]:
    """Those that the overlay does not bring itself, by name."""
    brought = {name_of(one) for one in objects if one["kind"] == "Secret"}
    brought |= {
        str(dig(one, "spec", "target", "name") or name_of(one))
        for one in objects
        if one["kind"] == "ExternalSecret"
    }
    by_name: dict[str, list[_Reference]] = {}
    for one in objects:
        for reference in _walk(one):
            if reference.name and reference.name not in brought:
                by_name.setdefault(reference.name, []).append(reference)
    return [_merge(name, by_name[name]) for name in sorted(by_name)]


def _merge(name: str, references: Sequence[_Reference]) -> SecretNeed:
    must = {key for one in references if not one.is_optional for key in one.keys}
    may = {key for one in references if one.is_optional for key in one.keys} - must
    is_optional = all(one.is_optional for one in references)
    return SecretNeed(name, tuple(sorted(must)), tuple(sorted(may)), is_optional)


def _walk(value: object) -> Iterator[_Reference]:
    if isinstance(value, list):
        for one in value:
            yield from _walk(one)
        return
    if not isinstance(value, dict):
        return
    yield from _read(value)
    for inner in value.values():
        yield from _walk(inner)


def _read(value: Manifest) -> Iterator[_Reference]:
    """What this very object refers to."""
    for name in ("secretKeyRef", "secretRef"):
        told = value.get(name)
        if isinstance(told, dict):
            keys = (str(told["key"]),) if told.get("key") else ()
            yield _Reference(str(told.get("name") or ""), keys, bool(told.get("optional")))
    mounted = value.get("secret")
    if isinstance(mounted, dict) and (mounted.get("secretName") or mounted.get("name")):
        items = tuple(str(item["key"]) for item in mounted.get("items") or ())
        name = str(mounted.get("secretName") or mounted.get("name"))
        yield _Reference(name, items, bool(mounted.get("optional")))
    for pull in value.get("imagePullSecrets") or ():
        if isinstance(pull, dict):
            yield _Reference(str(pull.get("name") or ""), PULL_KEYS, False)
    token = value.get("authOptions")
    if isinstance(token, dict) and token.get("secretName"):
        yield _Reference(str(token["secretName"]), RAY_TOKEN_KEYS, False)
    for listener in value.get("tls") or () if isinstance(value.get("tls"), list) else ():
        if isinstance(listener, dict):
            yield _Reference(str(listener.get("secretName") or ""), TLS_KEYS, False)
    for certificate in value.get("certificateRefs") or ():
        if isinstance(certificate, dict) and certificate.get("kind", "Secret") == "Secret":
            yield _Reference(str(certificate.get("name") or ""), TLS_KEYS, False)
