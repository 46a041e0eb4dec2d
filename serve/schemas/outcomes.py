"""What people and shops say about answers."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from serve.schemas.base import Wire, shown

MAX_OUTCOMES = 1_000
"""In one message."""

VerdictName = Literal["accepted", "rejected", "returned", "converted"]
RequestId = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
Reason = Annotated[str, Field(max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


class OutcomeSaid(Wire):
    """What became of one answer."""

    request_id: RequestId
    """`X-Request-Id` of the answer, its id (`tr_...`), or the job's."""
    verdict: VerdictName
    """`accepted` or `rejected` by your people, `returned` or `converted` (bought) by a customer.
    Of the first two the later one counts."""
    reason: Reason = ""
    """In your words; reports count them."""


class OutcomeRequest(Wire):
    """One outcome, or a list of them."""

    model_config = shown(request_id="req_0f3a9c", verdict="rejected", reason="colour is off")

    request_id: RequestId | None = None
    """`X-Request-Id` of the answer, its id (`tr_...`), or the job's."""
    verdict: VerdictName | None = None
    """`accepted` or `rejected` by your people, `returned` or `converted` (bought) by a customer.
    Of the first two the later one counts."""
    reason: Reason = ""
    outcomes: Annotated[tuple[OutcomeSaid, ...], Field(max_length=MAX_OUTCOMES)] | None = None
    """Instead of the fields above: many at once, the earlier ones first."""

    @model_validator(mode="after")
    def _is_one_or_many(self) -> Self:
        if self.outcomes is None:
            if self.request_id is None or self.verdict is None:
                raise ValueError("request_id and verdict, or outcomes, must be there")
        elif self.request_id is not None or self.verdict is not None or self.reason:
            raise ValueError("outcomes stands alone: no request_id, verdict or reason beside it")
        elif not self.outcomes:
            raise ValueError("outcomes must not be empty")
        return self

    def all_said(self) -> tuple[OutcomeSaid, ...]:
        if self.outcomes is not None:
            return self.outcomes
        assert self.request_id is not None
        assert self.verdict is not None
        one = OutcomeSaid(request_id=self.request_id, verdict=self.verdict, reason=self.reason)
        return (one,)


class OutcomeCard(OutcomeSaid):
    """One outcome as it is kept. Said again, it is the first one, with its reason and time."""

    id: str
    at: datetime


class OutcomesRecorded(Wire):
    """What was said, in its order."""

    items: tuple[OutcomeCard, ...]
    num_new: int
    """The others had been said before."""


class OutcomePage(Wire):
    """Newest first."""

    items: tuple[OutcomeCard, ...]
    next: str | None
    """Pass it as `after` for the next page; null on the last."""
