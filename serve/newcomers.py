"""The added versions as one router has them: who comes is given a door, who goes leaves it open
for as long as somebody may still be inside."""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from serve.catalog import Catalog
from serve.config import VersionId
from serve.experiments.book import RoutingTable, ServedRow
from serve.experiments.versions import Wish, read_wish
from serve.permits import Seats
from serve.served import group_of
from serve.store.experiment_tables import ServedState

Connect = Callable[[Wish], None]


@dataclass(frozen=True, slots=True)
class _Present:
    """A version that requests may get."""

    row: ServedRow
    wish: Wish

    def is_as(self, row: ServedRow) -> bool:
        was = self.row
        return (was.bundle, was.home, was.deployed) == (row.bundle, row.home, row.deployed)


class Newcomers:
    """Keeps catalog, permits and handles in step with what is served. Used from one event loop."""

    def __init__(
        self,
        *,
        catalog: Catalog,
        seats: Seats,
        family_versions: Collection[VersionId],
        connect: Connect,
        disconnect: Connect,
        keep_s: float,
        logger: logging.Logger,
    ):
        """
        Args:
            connect: makes it possible to ask the version's replicas; `disconnect` ends that.
            keep_s: how long the longest request may take that has a version which goes.
        """
        self._catalog = catalog
        self._seats = seats
        self._family_versions = frozenset(family_versions)
        self._connect = connect
        self._disconnect = disconnect
        self._keep_s = keep_s
        self._logger = logger
        self._present: dict[VersionId, _Present] = {}
        self._leaving: dict[VersionId, asyncio.TimerHandle] = {}
        self._unreadable: set[VersionId] = set()

    @property
    def versions(self) -> Mapping[VersionId, Wish]:
        return {version: present.wish for version, present in self._present.items()}

    def follow(self, table: RoutingTable) -> None:
        """For `RoutingBook.on_change`."""
        ready = {
            row.version: row
            for row in table.served
            if row.state is ServedState.READY and row.version not in self._family_versions
        }
        for version, present in list(self._present.items()):
            if version not in ready or not present.is_as(ready[version]):
                self._leave(version)
        for version, row in ready.items():
            if version not in self._present:
                self._join(row)

    def _join(self, row: ServedRow) -> None:
        try:
            wish = read_wish(row.bundle, row.deployed, row.home)
        except ValueError as exc:
            # Written by a newer version of this system: it is served by routers that can read it.
            if row.version not in self._unreadable:
                self._unreadable.add(row.version)
                self._logger.error("%s cannot be read: %s", row.version, exc)
            return
        timer = self._leaving.pop(row.version, None)
        if timer is not None:
            timer.cancel()
        # The catalog last: whoever finds it there finds the rest as well.
        self._connect(wish)
        self._seats.add(group_of(wish))
        self._catalog.add(wish.located)
        self._present[row.version] = _Present(row, wish)
        self._logger.info("%s is served from now on", row.version)

    def _leave(self, version: VersionId) -> None:
        wish = self._present.pop(version).wish
        self._catalog.remove(version)
        loop = asyncio.get_running_loop()
        self._leaving[version] = loop.call_later(self._keep_s, self._close, wish)
        self._logger.info("%s is served no more", version)

    def _close(self, wish: Wish) -> None:
        del self._leaving[wish.version]
        self._seats.remove(group_of(wish))
        self._disconnect(wish)
