"""Every product on every person: made, started, watched and told at the end."""

from collections.abc import Iterator

from serve.calling.connection import Connection, part
from serve.schemas.batches import BatchCard, BatchPage, BatchRequest, CellCard, CellPage, Manifest
from serve.schemas.jobs import JobStatus

CELLS_PER_PAGE = 200


class Batches:
    """Calls on `/v1/batches`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def create(self, request: BatchRequest) -> BatchCard:
        """A draft with an estimate, unless the request says `start`."""
        return BatchCard.model_validate_json(self._connection.write("POST", "/v1/batches", request))

    def list(self, after: str | None = None, limit: int = 50) -> BatchPage:
        """Newest first."""
        answer = self._connection.read("/v1/batches", after=after, limit=limit)
        return BatchPage.model_validate_json(answer)

    def get(self, batch_id: str) -> BatchCard:
        return BatchCard.model_validate_json(self._connection.read(_path(batch_id)))

    def start(self, batch_id: str) -> BatchCard:
        return self._act(batch_id, "start")

    def pause(self, batch_id: str) -> BatchCard:
        """Cells that run go on to their end."""
        return self._act(batch_id, "pause")

    def resume(self, batch_id: str) -> BatchCard:
        return self._act(batch_id, "resume")

    def cancel(self, batch_id: str) -> BatchCard:
        """Cells that run stop at their next step; it has ended with `finished_at`."""
        return self._act(batch_id, "cancel")

    def retry(self, batch_id: str, cell: int | None = None) -> BatchCard:
        """Try failed cells again: this one, or all."""
        return self._act(batch_id, "retry" if cell is None else f"cells/{cell}/retry")

    def cells(self, batch_id: str, status: JobStatus | None = None) -> Iterator[CellCard]:
        """In the order of the matrix; page after page."""
        after: int | None = -1
        while after is not None:
            answer = self._connection.read(
                f"{_path(batch_id)}/cells", status=status, after=after, limit=CELLS_PER_PAGE
            )
            page = CellPage.model_validate_json(answer)
            yield from page.items
            after = page.next

    def manifest(self, batch_id: str) -> Manifest:
        """What became of every cell; refused as a conflict before the batch has ended."""
        return Manifest.model_validate_json(self._connection.read(f"{_path(batch_id)}/manifest"))

    def _act(self, batch_id: str, name: str) -> BatchCard:
        answer = self._connection.send("POST", f"{_path(batch_id)}/{name}").content
        return BatchCard.model_validate_json(answer)


def _path(batch_id: str) -> str:
    return f"/v1/batches/{part(batch_id)}"
