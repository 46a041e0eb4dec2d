"""The default of an expert as administrators change it, with its audit record."""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from serve.config import VersionId
from serve.messages import Expert
from serve.store.audit import Act, append_record
from serve.store.columns import utc_now
from serve.store.defaults import clear_default, list_defaults, refuse_while_rolled_out, set_default
from serve.store.engine import Database
from serve.store.experiment_tables import ExpertDefault


class Defaults:
    """Every change takes the actor: the id of the key that asks."""

    def __init__(self, database: Database, now: Callable[[], datetime] = utc_now):
        self._database = database
        self._now = now

    async def list(self) -> Mapping[str, ExpertDefault]:
        """Those that somebody set, by expert."""
        async with self._database.reading() as session:
            return {row.expert: row for row in await list_defaults(session)}

    async def set(
        self, actor: str, expert: Expert, version: VersionId, instead_of: VersionId | None
    ) -> ExpertDefault:
        """
        Args:
            instead_of: what it was, where nobody set one before.

        Raises:
            Conflict: a rollout is about to decide it.
        """
        now = self._now()
        async with self._database.transaction() as session:
            await refuse_while_rolled_out(session, expert)
            row = await set_default(session, expert, version, actor, now, instead_of=instead_of)
            detail = {"version": version, "previous": row.previous}
            await append_record(session, _act(actor, "default.set", expert, detail), now)
        return row

    async def clear(self, actor: str, expert: Expert) -> None:
        """The family file decides again; nothing changes where it did.

        Raises:
            Conflict: a rollout is about to decide it.
        """
        now = self._now()
        async with self._database.transaction() as session:
            await refuse_while_rolled_out(session, expert)
            row = await clear_default(session, expert)
            if row is not None:
                act = _act(actor, "default.clear", expert, {"version": row.version})
                await append_record(session, act, now)


def _act(actor: str, action: str, expert: Expert, detail: Mapping[str, Any]) -> Act:
    return Act(actor=actor, action=action, tenant_id=None, target=expert, detail=detail)
