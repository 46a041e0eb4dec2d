"""What one process keeps open is closed in an order in which nothing is lost."""

from pathlib import Path

import pytest
from sqlalchemy import func, select

from serve.services import open_services
from serve.settings import Settings
from serve.store.ledger import Budget
from serve.store.opening import open_database
from serve.store.schema import upgrade
from serve.store.tables import LedgerEntry
from tests.stores import add_tenant
from tests.test_ledger import wish

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_what_is_pending_is_written_also_when_something_else_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(data_dir=tmp_path)
    await upgrade(f"sqlite:///{open_database(settings).file}")
    services = open_services(settings)
    async with services.database.transaction() as session:
        await add_tenant(session)
    written = services.ledger.reserve(wish("tr_1"), Budget())

    async def fail() -> None:
        raise ValueError("a key that nobody can read")

    monkeypatch.setattr(services.keys, "flush", fail)
    with pytest.raises(ValueError, match="nobody can read"):
        await services.close()
    assert written.done()
    again = open_database(settings)
    async with again.reading() as session:
        assert await session.scalar(select(func.count()).select_from(LedgerEntry)) == 1
    await again.close()
