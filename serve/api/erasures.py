"""`POST /v1/erasures`: everything of one person is forgotten, and the answer proves it."""

from typing import Annotated

from fastapi import APIRouter, Depends

from serve.api.identity import require
from serve.api.responses import problems
from serve.schemas.assets import DeletedAsset, ErasureRecord, ErasureRequest
from serve.tenancy.caller import Caller
from serve.tenancy.erasure import Erased, Erasure


def build_erasures_router(erasure: Erasure) -> APIRouter:
    router = APIRouter(tags=["assets"])

    @router.post(
        "/v1/erasures",
        summary="Erase a subject",
        response_model=ErasureRecord,
        responses=problems(),
    )
    async def erase(
        wanted: ErasureRequest, caller: Annotated[Caller, Depends(require("jobs"))]
    ) -> ErasureRecord:
        """Cancels and deletes the subject's jobs, then deletes its pictures, what was answered
        about them, and what replicas remember of them. Erasing again does no harm."""
        return _record(await erasure.erase(caller.tenant_id, wanted.subject, caller.key_id))

    return router


def _record(erased: Erased) -> ErasureRecord:
    assets = tuple(
        DeletedAsset(
            id=asset.id,
            kind=asset.kind.value,
            sha256=asset.sha256,
            num_bytes=asset.num_bytes,
            is_blob_deleted=asset.is_blob_deleted,
        )
        for asset in erased.assets
    )
    return ErasureRecord(
        subject_sha256=erased.subject_sha256,
        is_complete=erased.is_complete,
        assets=assets,
        num_bytes=erased.num_bytes,
        jobs_deleted=erased.jobs_deleted,
        jobs_cancelling=erased.jobs_cancelling,
        num_answers=erased.num_answers,
        num_deliveries=erased.num_deliveries,
        erased_at=erased.erased_at,
        actor=erased.actor,
        audit_sequence=erased.audit_sequence,
        audit_sha256=erased.audit_sha256,
    )
