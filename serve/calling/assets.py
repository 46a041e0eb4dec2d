"""Pictures that are uploaded once and used by id, and their deletion."""

from serve.calling.connection import Connection, part
from serve.schemas.assets import (
    AssetCard,
    AssetDeletion,
    AssetPage,
    ErasureRecord,
    ErasureRequest,
    Kind,
)


class Assets:
    """Calls on `/v1/assets` and `/v1/erasures`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def upload(self, data: bytes, subject: str = "") -> AssetCard:
        """The same bytes again, for the same subject, are the same asset, kept longer.

        Args:
            data: an encoded picture.
            subject: whose picture it is, as you call them; what `erase` goes by.
        """
        response = self._connection.send(
            "POST",
            "/v1/assets",
            content=data,
            params={"subject": subject} if subject else {},
            headers={"Content-Type": "application/octet-stream"},
        )
        return AssetCard.model_validate_json(response.content)

    def list(
        self,
        kind: Kind | None = None,
        subject: str | None = None,
        after: str | None = None,
        limit: int = 50,
    ) -> AssetPage:
        """Newest first."""
        answer = self._connection.read(
            "/v1/assets", kind=kind, subject=subject, after=after, limit=limit
        )
        return AssetPage.model_validate_json(answer)

    def content(self, asset_id: str) -> bytes:
        return self._connection.read(f"/v1/assets/{part(asset_id)}/content")

    def delete(self, asset_id: str) -> AssetDeletion:
        answer = self._connection.send("DELETE", f"/v1/assets/{part(asset_id)}").content
        return AssetDeletion.model_validate_json(answer)

    def erase(self, subject: str) -> ErasureRecord:
        """Everything of one person; repeat it until `is_complete`."""
        answer = self._connection.write("POST", "/v1/erasures", ErasureRequest(subject=subject))
        return ErasureRecord.model_validate_json(answer)
