"""Where the API of the cluster is to be called; pure."""

from collections.abc import Iterator

from k8s.state.findings import Manifest, dig, name_of
from k8s.state.snapshot import Snapshot

PORT = 8000


def find_address(seen: Snapshot) -> tuple[str, str]:
    """The way that is open to the most: a route with a name, a gateway, a service; and the command
    that opens it here, where it is open inside the cluster only."""
    stable = f"{seen.name}-serve-svc"
    for address in (*_routes(seen), *_gateways(seen)):
        return address, ""
    for service in seen.services:
        if name_of(service) == stable:
            return _of_service(service, seen.namespace)
    return "", ""


def _routes(seen: Snapshot) -> Iterator[str]:
    """Names of Ingress and HTTPRoute that lead to the service."""
    for route in seen.routes:
        if route.get("kind") == "Ingress":
            secured = {
                host for tls in dig(route, "spec", "tls") or () for host in tls.get("hosts") or ()
            }
            for rule in dig(route, "spec", "rules") or ():
                if rule.get("host"):
                    scheme = "https" if rule["host"] in secured else "http"
                    yield f"{scheme}://{rule['host']}"
        elif route.get("kind") == "HTTPRoute":
            # TLS ends at its Gateway, which may be in a namespace that nobody here may read.
            yield from (f"https://{host}" for host in dig(route, "spec", "hostnames") or ())


def _gateways(seen: Snapshot) -> Iterator[str]:
    for gateway in seen.routes:
        if gateway.get("kind") == "Gateway":
            for address in dig(gateway, "status", "addresses") or ():
                port = dig(gateway, "spec", "listeners", 0, "port") or 80
                suffix = "" if port in (80, 443) else f":{port}"
                scheme = "https" if port == 443 else "http"
                yield f"{scheme}://{address.get('value')}{suffix}"


def _of_service(service: Manifest, namespace: str) -> tuple[str, str]:
    name = name_of(service)
    for entry in dig(service, "status", "loadBalancer", "ingress") or ():
        return f"http://{entry.get('hostname') or entry.get('ip')}:{PORT}", ""
    forward = f"kubectl -n {namespace} port-forward svc/{name} {PORT}"
    return f"http://{name}.{namespace}:{PORT}", forward
