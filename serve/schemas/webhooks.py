"""Messages to a tenant's own servers, and the secrets that sign them."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field

from serve.schemas.base import Wire, shown

DeliveryStatus = Literal["pending", "delivered", "failed"]
WEEK_S = 604_800.0


class Delivery(Wire):
    """One message and how it fared; it is sent at least once, always under the same id."""

    id: str
    """The header `webhook-id` of every attempt: forget a message whose id you have seen."""
    event: str
    """`job.succeeded`, `job.failed`, `job.cancelled`, `batch.finished`, `batch.cancelled` or
    `webhook.test`."""
    subject_id: str
    """The job or batch it is about."""
    url: str
    status: DeliveryStatus
    """`failed` is given up; `redeliver` tries again."""
    attempts: int
    next_attempt_at: datetime | None
    """About; null when there is none."""
    last_status: int | None
    """The receiver's HTTP status at the last attempt; null where there was no answer."""
    last_error: str | None
    created_at: datetime
    delivered_at: datetime | None


class DeliveryDetail(Delivery):
    """One message with what it says."""

    payload: dict[str, Any]


class DeliveryPage(Wire):
    """Newest first."""

    items: tuple[Delivery, ...]
    next: str | None
    """Pass it as `after` for the next page; null on the last."""


class SecretCard(Wire):
    """A secret that signs, without the secret."""

    id: str
    created_at: datetime
    expires_at: datetime | None
    """Null for the current one."""


class SecretList(Wire):
    """The current one first."""

    items: tuple[SecretCard, ...]


class RotationRequest(Wire):
    """How long the secrets until now go on signing beside the new one."""

    model_config = shown(overlap_s=86_400)

    overlap_s: Annotated[float, Field(ge=0, le=WEEK_S, allow_inf_nan=False)] = 86_400.0


class NewSecret(SecretCard):
    """The new current secret, shown this once."""

    secret: str = Field(repr=False)
    """`whsec_...`, as any Standard Webhooks library takes it."""


class TestMessage(Wire):
    """Where to send a message that says nothing."""

    __test__ = False  # no test case, for all its name
    model_config = shown(url="https://shop.example/hooks/sm4ll")

    url: Annotated[str, Field(max_length=4096)]
