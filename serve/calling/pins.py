"""Collections that stay on the versions they were begun with."""

from collections.abc import Iterator, Mapping

from serve.calling.connection import Connection, part
from serve.messages import Expert
from serve.schemas.pins import PinCard, PinPage, PinRequest


class Pins:
    """Calls on `/v1/pins`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def set(self, collection: str, versions: Mapping[Expert, str] | None = None) -> PinCard:
        """
        Args:
            versions: `eye@1` or `1` by expert; the defaults of now when absent.
        """
        wanted = PinRequest() if versions is None else PinRequest(versions=versions)
        return PinCard.model_validate_json(self._connection.write("PUT", _path(collection), wanted))

    def get(self, collection: str) -> PinCard:
        return PinCard.model_validate_json(self._connection.read(_path(collection)))

    def list(self) -> Iterator[PinCard]:
        """Newest first."""
        after: str | None = None
        while True:
            answer = self._connection.read("/v1/pins", after=after, limit=200)
            page = PinPage.model_validate_json(answer)
            yield from page.items
            after = page.next
            if after is None:
                return

    def remove(self, collection: str) -> None:
        """Its requests get what others get."""
        self._connection.send("DELETE", _path(collection))


def _path(collection: str) -> str:
    return f"/v1/pins/{part(collection)}"
