"""What this process chooses versions by, read from the database at most every second.

A router that was idle asks before it answers, so that a change is in force on every router within
three seconds; while the database is away what was read last stays in force.
"""

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from serve.config import VersionId
from serve.designs import ExperimentDesign
from serve.errors import Sm4llError, StoreUnavailable
from serve.experiments.allocation import load_allocation
from serve.experiments.assignment import LiveExperiment
from serve.messages import Expert
from serve.store.engine import Database
from serve.store.experiment_tables import (
    Experiment,
    ExperimentAllocation,
    ServedState,
    ServedVersion,
)
from serve.store.routing import RoutingRows, read_revision, read_routing

# From here on the next request asks for a fresh table without waiting for it.
REFRESH_AGE_S = 1.0
# From here on it waits, for a database that answered the last time it was asked.
MAX_AGE_S = 2.5
PATIENCE_S = 1.0
READ_TIMEOUT_S = 5.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServedRow:
    """A version that was added to the running cluster; see `ServedVersion`."""

    version: VersionId
    bundle: Mapping[str, Any] = field(repr=False)
    home: str
    deployed: Mapping[str, Any] = field(repr=False)
    state: ServedState
    reason: str


@dataclass(frozen=True, slots=True)
class RoutingTable:
    """One state of the cluster's routing; a change is another table."""

    revision: int
    experiments: Mapping[Expert, tuple[LiveExperiment, ...]]
    """Those that assign, in the order in which they are asked."""
    defaults: Mapping[Expert, VersionId]
    """Where somebody set one."""
    served: tuple[ServedRow, ...]


Told = Callable[[RoutingTable], None]


class RoutingBook:
    """Keeps one table and replaces it. Used from one event loop."""

    def __init__(self, database: Database, now_s: Callable[[], float] = time.monotonic):
        self._database = database
        self._now_s = now_s
        self._table: RoutingTable | None = None
        self._read_at_s = 0.0
        """Before the read: what changed meanwhile counts as not seen."""
        self._asked_at_s = 0.0
        self._reading: asyncio.Task[None] | None = None
        self._is_worth_waiting = True
        self._is_away = False
        self._told: list[Told] = []

    def on_change(self, told: Told) -> None:
        """Is called with every other table, and with the one that is known already; must not
        block."""
        self._told.append(told)
        if self._table is not None:
            told(self._table)

    async def fresh(self) -> RoutingTable:
        """The table as the database had it two and a half seconds ago at most, while it answers.

        Raises:
            StoreUnavailable: it was never read, and the database does not answer.
        """
        table = self._table
        if table is None:
            return await self._read_first()
        now_s = self._now_s()
        age_s = now_s - self._read_at_s
        if age_s < REFRESH_AGE_S:
            return table
        since_s = now_s - self._asked_at_s
        if self._reading is None and since_s >= REFRESH_AGE_S:
            # One that was away is waited for again by whoever comes after a pause.
            self._is_worth_waiting = not self._is_away or since_s >= MAX_AGE_S
            self._begin()
        if self._reading is None or age_s < MAX_AGE_S or not self._is_worth_waiting:
            return table
        await asyncio.wait([self._reading], timeout=PATIENCE_S)
        if self._reading is not None:
            self._is_worth_waiting = False
            self._note_away(f"no answer within {PATIENCE_S:.0f} s")
        return self._table or table

    async def renew(self) -> None:
        """Read it now: whoever changed something here sees it at once."""
        await self.flush()  # what it reads may be from before the change
        await asyncio.wait([self._reading or self._begin()])

    async def flush(self) -> None:
        """Wait for what runs beside the requests."""
        if self._reading is not None:
            await asyncio.wait([self._reading])

    async def _read_first(self) -> RoutingTable:
        await asyncio.shield(self._reading or self._begin())  # others wait for it as well
        assert self._table is not None
        return self._table

    def _begin(self) -> asyncio.Task[None]:
        self._asked_at_s = self._now_s()
        # A context of its own: nothing of the request that happened to come first belongs here.
        self._reading = asyncio.get_running_loop().create_task(
            self._read(), context=contextvars.Context()
        )
        self._reading.add_done_callback(_log_mistake)
        return self._reading

    async def _read(self) -> None:
        asked_at_s = self._asked_at_s
        try:
            table = await self._read_table()
        except Sm4llError as exc:
            if self._table is None:
                raise
            self._note_away(exc.detail)
            return
        finally:
            self._reading = None
        if self._is_away:
            self._is_away = False
            logger.info("routing is read again, at revision %d", table.revision)
        self._read_at_s = asked_at_s
        if table is not self._table:
            self._table = table
            for told in self._told:
                told(table)

    async def _read_table(self) -> RoutingTable:
        try:
            async with asyncio.timeout(READ_TIMEOUT_S), self._database.reading() as session:
                if self._table is not None:
                    if await read_revision(session) == self._table.revision:
                        return self._table
                rows = await read_routing(session)
        except TimeoutError as exc:
            raise StoreUnavailable(
                "The database does not answer.", retry_after_s=READ_TIMEOUT_S
            ) from exc
        return build_table(rows)

    def _note_away(self, why: str) -> None:
        if not self._is_away:
            self._is_away = True
            logger.warning("what routing was last read stays in force: %s", why)


def _log_mistake(reading: asyncio.Task[None]) -> None:
    """What nobody waits for would be lost."""
    mistake = None if reading.cancelled() else reading.exception()
    if mistake is not None and not isinstance(mistake, Sm4llError):
        logger.error("routing was read in vain", exc_info=mistake)


def build_table(rows: RoutingRows) -> RoutingTable:
    experiments: dict[Expert, tuple[LiveExperiment, ...]] = {}
    for experiment, allocation in rows.experiments:
        live = _load(experiment, allocation)
        if live is not None:
            expert = live.design.expert
            experiments[expert] = (*experiments.get(expert, ()), live)
    defaults: dict[Expert, VersionId] = {
        row.expert: row.version  # type: ignore[misc]  # nobody writes another word
        for row in rows.defaults
    }
    return RoutingTable(
        revision=rows.revision,
        experiments=MappingProxyType(experiments),
        defaults=MappingProxyType(defaults),
        served=tuple(_served(row) for row in rows.served),
    )


def _load(experiment: Experiment, allocation: ExperimentAllocation) -> LiveExperiment | None:
    try:
        design = ExperimentDesign.model_validate(experiment.design)
        return LiveExperiment(design, allocation.revision, load_allocation(allocation.ranges))
    except (ValidationError, ValueError) as exc:
        # Written by a newer version of this system: one that cannot be read assigns nobody here.
        logger.error("experiment %s cannot be read: %s", experiment.id, exc)
        return None


def _served(row: ServedVersion) -> ServedRow:
    return ServedRow(row.version, row.bundle, row.home, row.deployed, row.state, row.reason)
