"""Whatever ends a look at the keys, nobody who asked waits for ever."""

import asyncio
from contextlib import AbstractAsyncContextManager

import pytest

from serve.errors import StoreUnavailable
from serve.observing.logs import log_context, log_fields
from serve.store.engine import Database, Session
from serve.tenancy.key_lookup import KeyLookup

pytestmark = pytest.mark.anyio

PATIENCE_S = 5.0


class Broken(Database):
    """Fails once it is let go, with what no database should raise."""

    def __init__(self, error: BaseException):
        self._error = error
        self.is_asked = asyncio.Event()
        self.is_let_go = asyncio.Event()

    def reading(self) -> AbstractAsyncContextManager[Session]:  # type: ignore[override]
        return _Raising(self)


class _Raising(AbstractAsyncContextManager[Session]):
    def __init__(self, owner: Broken):
        self._owner = owner

    async def __aenter__(self) -> Session:
        self._owner.is_asked.set()
        await self._owner.is_let_go.wait()
        raise self._owner._error

    async def __aexit__(self, *_: object) -> None: ...


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_mistake_of_ours_is_told_to_all_who_asked() -> None:
    database = Broken(ValueError("a row that nobody can read"))
    lookup = KeyLookup(database)
    first = asyncio.ensure_future(lookup.find("key_1"))
    await database.is_asked.wait()
    second = asyncio.ensure_future(lookup.find("key_2"))  # waits for the next query
    database.is_let_go.set()
    async with asyncio.timeout(PATIENCE_S):
        answers = await asyncio.gather(first, second, return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 2


async def test_look_that_is_cancelled_leaves_nobody_waiting() -> None:
    database = Broken(asyncio.CancelledError())
    lookup = KeyLookup(database)
    asking = asyncio.ensure_future(lookup.find("key_1"))
    database.is_let_go.set()
    async with asyncio.timeout(PATIENCE_S):
        with pytest.raises(StoreUnavailable):
            await asking


async def test_a_look_for_all_belongs_to_no_request() -> None:
    """Or lines of it would name the tenant who happened to come first."""
    told: list[object] = []

    class Overheard(Broken):
        def reading(self) -> AbstractAsyncContextManager[Session]:  # type: ignore[override]
            told.append(log_context.get())
            return super().reading()

    database = Overheard(ValueError("a row that nobody can read"))
    database.is_let_go.set()
    with log_fields(request_id="req_1"):
        with pytest.raises(StoreUnavailable):
            await KeyLookup(database).find("key_1")
    assert told == [None]
