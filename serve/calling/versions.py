"""Versions that run beside those of the family file."""

from collections.abc import Iterator

from serve.calling.connection import Connection, part
from serve.schemas.versions import NewVersion, VersionCard, VersionPage


class Versions:
    """Calls on `/v1/versions`, for keys with the scope `admin`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def deploy(self, new: NewVersion) -> VersionCard:
        """Accepted; `get` says when it is ready, or why it is not."""
        return VersionCard.model_validate_json(self._connection.write("POST", "/v1/versions", new))

    def get(self, version: str) -> VersionCard:
        return VersionCard.model_validate_json(self._connection.read(_path(version)))

    def list(self) -> Iterator[VersionCard]:
        """Newest first."""
        after: str | None = None
        while True:
            answer = self._connection.read("/v1/versions", after=after, limit=200)
            page = VersionPage.model_validate_json(answer)
            yield from page.items
            after = page.next
            if after is None:
                return

    def undeploy(self, version: str) -> VersionCard:
        """Requests that have it go on to their end."""
        answer = self._connection.send("DELETE", _path(version)).content
        return VersionCard.model_validate_json(answer)


def _path(version: str) -> str:
    return f"/v1/versions/{part(version)}"
