"""Reads keys from the database, many in one query and never more than one query at a time.

So a flood of made-up keys costs the database one connection, whatever its size, and a real key
that nobody has seen here yet waits for two queries at most.
"""

import asyncio
import contextvars
import logging

from serve.errors import Overloaded, Sm4llError, StoreUnavailable
from serve.store.engine import Database
from serve.store.keys import find_keys
from serve.store.tables import ApiKey, Tenant

MAX_IDS = 500
MAX_WAITING = 5_000
RETRY_AFTER_S = 1.0

logger = logging.getLogger(__name__)

Found = tuple[ApiKey, Tenant] | None


class KeyLookup:
    """Used from one event loop."""

    def __init__(self, database: Database):
        self._database = database
        self._waiting: dict[str, asyncio.Future[Found]] = {}
        self._task: asyncio.Task[None] | None = None
        self.num_queries = 0

    async def find(self, key_id: str) -> Found:
        """The key and its tenant as they are now, or None.

        Raises:
            StoreUnavailable: the database does not answer.
            Overloaded: too many others wait.
        """
        answer = self._waiting.get(key_id)
        if answer is None:
            if len(self._waiting) >= MAX_WAITING:
                raise Overloaded("too many keys to look up", retry_after_s=RETRY_AFTER_S)
            loop = asyncio.get_running_loop()
            answer = self._waiting[key_id] = loop.create_future()
            if self._task is None:
                # A context of its own: it asks for others as well.
                self._task = loop.create_task(self._run(), context=contextvars.Context())
        # One caller that leaves takes nothing from the others.
        return await asyncio.shield(answer)

    async def _run(self) -> None:
        try:
            while self._waiting:
                ids = list(self._waiting)[:MAX_IDS]
                # Who asks for one of these from now on may have seen a change: the next query's.
                await self._answer({key_id: self._waiting.pop(key_id) for key_id in ids})
        finally:
            self._task = None

    async def _answer(self, asked: "dict[str, asyncio.Future[Found]]") -> None:
        self.num_queries += 1
        try:
            async with self._database.reading() as session:
                found = await find_keys(session, asked)
        except BaseException as exc:
            # Whatever ended it, also the end of the loop: nobody waits for an answer for ever.
            error = exc if isinstance(exc, Sm4llError) else StoreUnavailable("No key can be read.")
            for answer in asked.values():
                if not answer.done():
                    answer.set_exception(error)
                    answer.exception()  # seen: all who asked may have left
            if not isinstance(exc, Exception):
                raise
            if not isinstance(exc, Sm4llError):
                logger.exception("keys could not be read")
            return
        for key_id, answer in asked.items():
            if not answer.done():
                answer.set_result(found.get(key_id))
