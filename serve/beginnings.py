"""Series that begin before their first event.

A rate knows nothing of the value that a series begins with: the first twenty refusals of a kind
would be on no picture, and the first failures of a version would burn nobody's budget.
"""

from serve import errors
from serve.errors import ClusterError, Sm4llError
from serve.objectives import FAILURES
from serve.observing.meter import Meter
from serve.observing.tryons import OK

TRYON_ROUTE = "/v1/tryon"
_PROBLEMS = tuple(
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type)
    and issubclass(kind, Sm4llError)
    and not issubclass(kind, ClusterError)  # no caller is ever told
)


def expect_answers(meter: Meter) -> None:
    """What the route that all is about may answer; about forty series of a router."""
    for code in sorted({kind.code for kind in _PROBLEMS}):
        meter.expect("sm4ll_refusals_total", route=TRYON_ROUTE, code=code)
    for status in sorted({200, *(kind.status for kind in _PROBLEMS)}):
        meter.expect(
            "sm4ll_http_requests_total", route=TRYON_ROUTE, method="POST", status=str(status)
        )


def expect_tryons(meter: Meter, version: str) -> None:
    """How those of a version may end that objectives count."""
    expert = version.partition("@")[0]
    for code in (OK, *FAILURES):
        meter.expect("sm4ll_tryons_total", expert=expert, version=version, way="request", code=code)
