"""A batch's document, and the jobs of its cells; pure."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from serve.observing.tracing import TRACEPARENT
from serve.schemas.batches import BatchRequest
from serve.schemas.tryon import TryOnOptions
from serve.store.batch_tables import Batch
from serve.store.ids import new_id
from serve.store.jobs import NewJob

Reference = dict[str, str]
"""`{"asset": ...}` or `{"url": ...}`."""


@dataclass(frozen=True)
class Spec:
    """What a batch was asked to do."""

    options: TryOnOptions
    products: tuple[tuple[str, Reference], ...]
    """SKU and picture."""
    persons: tuple[tuple[str, Reference, Reference | None], ...]
    """Name, picture and mask."""
    subject: str
    choice: dict[str, Any] | None
    """Why it is this version, for every cell; None for a batch from before choices were kept."""

    @property
    def asset_ids(self) -> list[str]:
        of_products = (reference for _, reference in self.products)
        of_persons = (reference for _, *both in self.persons for reference in both)
        return [one["asset"] for one in (*of_products, *of_persons) if one and "asset" in one]

    def place(self, cell: int) -> tuple[str, str]:
        """SKU and person of a cell."""
        row, column = divmod(cell, len(self.persons))
        return self.products[row][0], self.persons[column][0]


def write_spec(
    request: BatchRequest, options: TryOnOptions, choice: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "options": options.model_dump(mode="json"),
        "products": [[product.sku, _reference(product.image)] for product in request.products],
        "persons": [
            [person.name, _reference(person.image), person.mask and _reference(person.mask)]
            for person in request.persons
        ],
        "subject": request.subject,
        "webhook_url": request.webhook_url,
        "choice": dict(choice),
    }


def read_spec(batch: Batch) -> Spec:
    return Spec(
        options=TryOnOptions.model_validate(batch.spec["options"]),
        products=tuple((name, reference) for name, reference in batch.spec["products"]),
        persons=tuple((name, person, mask) for name, person, mask in batch.spec["persons"]),
        subject=batch.spec["subject"],
        choice=batch.spec.get("choice"),
    )


def write_cells(
    batch: Batch,
    cells: Iterable[int],
    runnable_at: datetime | None,
    traceparent: str | None = None,
) -> list[NewJob]:
    """A new job for each; product x number of persons + person is a cell's number.

    Args:
        traceparent: of the call that starts them, where it is recorded.
    """
    spec = read_spec(batch)
    options = spec.options.model_dump(mode="json")
    jobs = []
    for cell in cells:
        row, column = divmod(cell, len(spec.persons))
        jobs.append(
            NewJob(
                id=new_id("job"),
                version=batch.version,
                priority=batch.priority,
                request={
                    # Of its own product, so that reports tell SKUs apart; the choice is one.
                    "options": {**options, "sku": spec.products[row][0]},
                    "person": spec.persons[column][1],
                    "product": spec.products[row][1],
                    "mask": spec.persons[column][2],
                    "webhook_url": None,
                    "deadline_s": None,
                    "choice": spec.choice,
                    TRACEPARENT: traceparent,
                },
                predicted_gpu_ms=batch.predicted_gpu_ms // batch.num_cells,
                num_images=spec.options.num_images,
                subject=spec.subject,
                batch_id=batch.id,
                cell=cell,
                runnable_at=runnable_at,
            )
        )
    return jobs


def _reference(image: str) -> Reference:
    return {"asset": image} if image.startswith("ast_") else {"url": image}
