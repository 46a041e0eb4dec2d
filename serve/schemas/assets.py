"""Pictures that were uploaded or made, and the proof that they are gone."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from serve.schemas.base import Wire, shown

Kind = Literal["input", "result"]
Subject = Annotated[str, StringConstraints(max_length=128, pattern=r"^[^\x00-\x1f\x7f]*$")]


class AssetCard(Wire):
    """One picture; its bytes are at `/v1/assets/{id}/content`."""

    id: str
    kind: Kind
    """`input` was uploaded, `result` was made by a job."""
    sha256: str
    num_bytes: int
    media_type: str
    width: int | None
    """As it is seen, upright."""
    height: int | None
    subject: str
    """Whose picture it is, as you call them; empty where you did not say."""
    created_at: datetime
    expires_at: datetime | None


class AssetPage(Wire):
    """Newest first."""

    items: tuple[AssetCard, ...]
    next: str | None
    """Pass it as `after` for the next page; null on the last."""


class DeletedAsset(Wire):
    """What is gone."""

    id: str
    kind: Kind
    sha256: str
    num_bytes: int
    is_blob_deleted: bool
    """False where another of your assets has the same bytes, which are kept for that one."""


class AssetDeletion(DeletedAsset):
    """The proof that one asset was deleted; the audit log has it too."""

    deleted_at: datetime


class ErasureRequest(Wire):
    """Whose pictures and jobs shall be gone."""

    model_config = shown(subject="customer 4711")

    subject: Annotated[Subject, StringConstraints(min_length=1)] = Field(repr=False)


class ErasureRecord(Wire):
    """The proof of an erasure; the audit log has it too. It does not name whom it was about."""

    subject_sha256: str
    """SHA-256 of the subject, as UTF-8."""
    is_complete: bool
    """False while a job of the subject that ran is being cancelled: erase again shortly."""
    assets: tuple[DeletedAsset, ...]
    num_bytes: int
    """Of the bytes that are gone."""
    jobs_deleted: tuple[str, ...]
    jobs_cancelling: tuple[str, ...]
    num_answers: int
    """Kept answers to requests with an Idempotency-Key that were about any of this."""
    num_deliveries: int
    """Webhook messages about these jobs."""
    erased_at: datetime
    actor: str
    """The key that asked for it."""
    audit_sequence: int
    audit_sha256: str
    """Of the record in the audit log."""
