"""A version on its way to being the default: begun, watched and steered."""

from collections.abc import Iterator

from serve.calling.connection import Connection, part
from serve.schemas.rollouts import DecisionCard, DecisionPage, NewRollout, RolloutCard, RolloutPage

DECISIONS_PER_PAGE = 200


class Rollouts:
    """Calls on `/v1/rollouts`, for keys with the scope `admin`."""

    def __init__(self, connection: Connection):
        self._connection = connection

    def start(self, plan: NewRollout) -> RolloutCard:
        """It begins when the version is ready, and goes on by itself."""
        return RolloutCard.model_validate_json(self._connection.write("POST", "/v1/rollouts", plan))

    def list(self, after: str | None = None, limit: int = 50) -> RolloutPage:
        """Newest first."""
        answer = self._connection.read("/v1/rollouts", after=after, limit=limit)
        return RolloutPage.model_validate_json(answer)

    def get(self, rollout_id: str) -> RolloutCard:
        return RolloutCard.model_validate_json(self._connection.read(_path(rollout_id)))

    def decisions(self, rollout_id: str) -> Iterator[DecisionCard]:
        """Newest first; page after page."""
        after: str | None = None
        while True:
            answer = self._connection.read(
                f"{_path(rollout_id)}/decisions", after=after, limit=DECISIONS_PER_PAGE
            )
            page = DecisionPage.model_validate_json(answer)
            yield from page.items
            after = page.next
            if after is None:
                return

    def last_decisions(self, rollout_id: str, limit: int) -> tuple[DecisionCard, ...]:
        """The newest ones, newest first; 200 at most."""
        answer = self._connection.read(f"{_path(rollout_id)}/decisions", limit=limit)
        return DecisionPage.model_validate_json(answer).items

    def pause(self, rollout_id: str) -> RolloutCard:
        """Weights stay as they are."""
        return self._act(rollout_id, "pause")

    def resume(self, rollout_id: str) -> RolloutCard:
        """A stage that was frozen begins anew."""
        return self._act(rollout_id, "resume")

    def abort(self, rollout_id: str) -> RolloutCard:
        """Everybody back to the control, for good."""
        return self._act(rollout_id, "abort")

    def approve(self, rollout_id: str) -> RolloutCard:
        """Let the present stage be left."""
        return self._act(rollout_id, "approve")

    def _act(self, rollout_id: str, name: str) -> RolloutCard:
        answer = self._connection.send("POST", f"{_path(rollout_id)}/{name}").content
        return RolloutCard.model_validate_json(answer)


def _path(rollout_id: str) -> str:
    return f"/v1/rollouts/{part(rollout_id)}"
