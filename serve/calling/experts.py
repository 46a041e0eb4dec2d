"""Which version of each expert is the cluster's default."""

from serve.calling.connection import Connection, part
from serve.messages import Expert
from serve.schemas.experts import DefaultChange, ExpertCard, ExpertList


class Experts:
    """Calls on `/v1/experts`, for keys with the scope `admin`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def list(self) -> tuple[ExpertCard, ...]:
        return ExpertList.model_validate_json(self._connection.read("/v1/experts")).items

    def set_default(self, expert: Expert, version: str) -> ExpertCard:
        """On every router within 5 seconds."""
        change = DefaultChange(version=version)
        return ExpertCard.model_validate_json(self._connection.write("PUT", _path(expert), change))

    def clear_default(self, expert: Expert) -> ExpertCard:
        """The family file decides again."""
        answer = self._connection.send("DELETE", _path(expert)).content
        return ExpertCard.model_validate_json(answer)


def _path(expert: Expert) -> str:
    return f"/v1/experts/{part(expert)}/default"
