"""Experiments: which versions are compared, on whom, and who gets which."""

from collections.abc import Iterator, Mapping

from serve.calling.connection import Connection, part
from serve.schemas.experiments import (
    AllocationList,
    AssignmentAnswer,
    ExperimentCard,
    ExperimentPage,
    NewExperiment,
    WeightsChange,
)
from serve.schemas.reports import Report

PATH = "/v1/experiments"


class Experiments:
    """Calls on `/v1/experiments`, for keys with the scope `admin`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def create(self, new: NewExperiment) -> ExperimentCard:
        """A draft that assigns nobody, unless it says `start`."""
        return ExperimentCard.model_validate_json(self._connection.write("POST", PATH, new))

    def list(self) -> Iterator[ExperimentCard]:
        """Every experiment, newest first."""
        after: str | None = None
        while True:
            answer = self._connection.read(PATH, limit=200, after=after)
            page = ExperimentPage.model_validate_json(answer)
            yield from page.items
            if page.next is None:
                return
            after = page.next

    def get(self, experiment_id: str) -> ExperimentCard:
        answer = self._connection.read(_path(experiment_id))
        return ExperimentCard.model_validate_json(answer)

    def report(self, experiment_id: str, revision: int | None = None) -> Report:
        """What it has shown so far, of all revisions or of one; the scope `review` is enough."""
        answer = self._connection.read(f"{_path(experiment_id)}/report", revision=revision)
        return Report.model_validate_json(answer)

    def start(self, experiment_id: str, reason: str = "") -> ExperimentCard:
        return self._act(experiment_id, "start", reason)

    def pause(self, experiment_id: str, reason: str = "") -> ExperimentCard:
        """It assigns nobody until it is resumed."""
        return self._act(experiment_id, "pause", reason)

    def resume(self, experiment_id: str, reason: str = "") -> ExperimentCard:
        """Also one that was frozen."""
        return self._act(experiment_id, "resume", reason)

    def end(self, experiment_id: str, reason: str = "") -> ExperimentCard:
        return self._act(experiment_id, "end", reason)

    def set_weights(
        self,
        experiment_id: str,
        weights: Mapping[str, int],
        *,
        revision: int | None = None,
        reason: str = "",
    ) -> ExperimentCard:
        """
        Args:
            weights: hundredths of a percent of every arm.
            revision: the one you have seen; refused where it is another by now.
        """
        change = WeightsChange(weights=dict(weights), revision=revision, reason=reason)
        answer = self._connection.write("PUT", f"{_path(experiment_id)}/weights", change)
        return ExperimentCard.model_validate_json(answer)

    def allocations(self, experiment_id: str) -> AllocationList:
        """What its weights were, the first one first."""
        answer = self._connection.read(f"{_path(experiment_id)}/allocations")
        return AllocationList.model_validate_json(answer)

    def assignment(
        self,
        experiment_id: str,
        *,
        unit: str | None = None,
        sku: str | None = None,
        collection: str | None = None,
        tenant: str | None = None,
        key: str | None = None,
    ) -> AssignmentAnswer:
        """Who gets which arm, and why not; nothing is written."""
        answer = self._connection.read(
            f"{_path(experiment_id)}/assignment",
            unit=unit,
            sku=sku,
            collection=collection,
            tenant=tenant,
            key=key,
        )
        return AssignmentAnswer.model_validate_json(answer)

    def _act(self, experiment_id: str, verb: str, reason: str) -> ExperimentCard:
        answer = self._connection.send(
            "POST", f"{_path(experiment_id)}/{verb}", params={"reason": reason} if reason else {}
        )
        return ExperimentCard.model_validate_json(answer.content)


def _path(experiment_id: str) -> str:
    return f"{PATH}/{part(experiment_id)}"
