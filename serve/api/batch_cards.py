"""A batch and its cells as their tenant reads them."""

from collections.abc import Mapping
from typing import Any

from serve.schemas.batches import (
    BatchCard,
    BatchCounts,
    BatchEstimate,
    BatchLinks,
    BatchSummary,
    CellCard,
    CellReceipt,
    ManifestEntry,
)
from serve.schemas.jobs import JobProblem
from serve.store.batch_progress import manifest_path
from serve.store.batch_tables import Batch
from serve.store.job_cards import PRIORITIES, describe_output, outputs_of
from serve.store.job_states import tell_state
from serve.store.tables import Job, JobState


def describe_summary(batch: Batch) -> BatchSummary:
    path = f"/v1/batches/{batch.id}"
    has_ended = batch.finished_at is not None
    return BatchSummary.model_validate(
        {
            "id": batch.id,
            "status": batch.state.value,
            "expert": batch.version.partition("@")[0],
            "version": batch.version,
            "priority": PRIORITIES[batch.priority],
            "num_products": len(batch.spec["products"]),
            "num_persons": len(batch.spec["persons"]),
            "num_cells": batch.num_cells,
            "num_ended": batch.num_ended,
            "progress": batch.num_ended / batch.num_cells,
            "created_at": batch.created_at,
            "started_at": batch.started_at,
            "finished_at": batch.finished_at,
            "links": BatchLinks(
                self=path,
                cells=f"{path}/cells",
                manifest=manifest_path(batch.id) if has_ended else None,
            ),
        }
    )


def describe_batch(batch: Batch, counts: Mapping[str, int], estimate: BatchEstimate) -> BatchCard:
    return BatchCard(
        **dict(describe_summary(batch)), counts=BatchCounts(**counts), estimate=estimate
    )


def describe_cell(job: Job, place: tuple[str, str]) -> CellCard:
    return CellCard.model_validate({**_cell(job, place), "attempts": job.attempts})


def describe_entry(job: Job, place: tuple[str, str]) -> ManifestEntry:
    receipt = (job.result or {}).get("receipt")
    return ManifestEntry.model_validate(
        {
            **_cell(job, place),
            "outputs": tuple(describe_output(one) for one in outputs_of(job)),
            "receipt": None if receipt is None else _essentials(receipt),
        }
    )


def _cell(job: Job, place: tuple[str, str]) -> dict[str, Any]:
    sku, person = place
    has_failed = job.error is not None and job.state is not JobState.SUCCEEDED
    return {
        "cell": job.cell,
        "sku": sku,
        "person": person,
        "status": tell_state(job.state),
        "job": job.id,
        "error": JobProblem.model_validate(job.error) if has_failed else None,
    }


def _essentials(receipt: Mapping[str, Any]) -> CellReceipt:
    kept = {name: receipt[name] for name in ("version", "seed", "quality", "preview", "outside")}
    return CellReceipt.model_validate({**kept, "gpu_s": receipt["usage"]["gpu_s"]})
