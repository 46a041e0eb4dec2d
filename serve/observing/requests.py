"""What is counted of HTTP requests, by route, by code and by tenant."""

from serve.observing.meter import Meter
from serve.observing.tenants import TenantLabels

# Strangers make up others, and each would be another series.
METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
OTHER_METHOD = "other"
OK = "ok"
LEFT_STATUS = 499
LEFT_CODE = "cancelled"


class Requests:
    """Of one process, used from its one event loop."""

    def __init__(self, meter: Meter, tenants: TenantLabels):
        self._meter = meter
        self._tenants = tenants
        self._num_running = 0

    def began(self) -> None:
        self._num_running += 1

    def ended(
        self,
        *,
        route: str,
        method: str,
        status: int,
        elapsed_s: float,
        num_body_bytes: int,
        code: str | None,
        tenant_id: str | None,
    ) -> None:
        """
        Args:
            route: the path's template.
            status: 499 where the caller left before there was an answer.
            code: the problem's, where the answer is one.
            tenant_id: none where the key was nobody's.
        """
        meter = self._meter
        self._num_running -= 1
        method = method if method in METHODS else OTHER_METHOD
        meter.add("sm4ll_http_requests_total", route=route, method=method, status=str(status))
        meter.observe("sm4ll_http_request_duration_seconds", elapsed_s, route=route)
        if num_body_bytes:
            meter.observe("sm4ll_http_request_body_bytes", num_body_bytes, route=route)
        if code is not None:
            meter.add("sm4ll_refusals_total", route=route, code=code)
        elif status == LEFT_STATUS:
            code = LEFT_CODE
        if tenant_id is not None:
            tenant = self._tenants.of(tenant_id)
            meter.add("sm4ll_tenant_requests_total", tenant=tenant, code=code or OK)

    def look(self) -> None:
        """For a sampler: set at the beginning and end of each, they would be a tenth of all that a
        request records."""
        self._meter.set("sm4ll_http_requests_in_progress", self._num_running)
        self._meter.set("sm4ll_named_tenants", self._tenants.num_named)
