"""What people and shops say about answers."""

from collections.abc import Sequence

from serve.calling.connection import Connection
from serve.schemas.outcomes import (
    OutcomeCard,
    OutcomePage,
    OutcomeRequest,
    OutcomeSaid,
    OutcomesRecorded,
    VerdictName,
)


class Outcomes:
    """Calls on `/v1/outcomes`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def add(self, request_id: str, verdict: VerdictName, reason: str = "") -> OutcomeCard:
        """Said again, it is the first one.

        Args:
            request_id: `X-Request-Id` of the answer, its id (`tr_...`), or the job's.
        """
        body = OutcomeRequest(request_id=request_id, verdict=verdict, reason=reason)
        answer = self._connection.write("POST", "/v1/outcomes", body)
        return OutcomesRecorded.model_validate_json(answer).items[0]

    def add_all(self, outcomes: Sequence[OutcomeSaid]) -> OutcomesRecorded:
        """At most 1,000, the earlier ones first."""
        body = OutcomeRequest(outcomes=tuple(outcomes))
        return OutcomesRecorded.model_validate_json(
            self._connection.write("POST", "/v1/outcomes", body)
        )

    def list(
        self, request_id: str | None = None, after: str | None = None, limit: int = 50
    ) -> OutcomePage:
        """Newest first."""
        answer = self._connection.read(
            "/v1/outcomes", request_id=request_id, after=after, limit=limit
        )
        return OutcomePage.model_validate_json(answer)
