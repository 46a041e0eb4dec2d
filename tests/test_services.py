"""What one process keeps open is closed in an order in which nothing is lost."""

from pathlib import Path

import pytest
from sqlalchemy import func, select

from serve.admission.ticket import Share
from serve.catalog import Choice
from serve.errors import GenerationFailed
from serve.experiments.assignment import Assignment
from serve.schemas.tryon import TryOnOptions
from serve.services import open_services
from serve.settings import Settings
from serve.steps import Sighting, TryOnWork
from serve.store.experiment_tables import Exposure
from serve.store.ledger import Budget
from serve.store.opening import open_database
from serve.store.schema import upgrade
from serve.store.tables import LedgerEntry
from tests.stores import add_tenant
from tests.test_ledger import wish
from tests.test_witness import add_experiment, bundle

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
        await add_experiment(session)
    written = services.ledger.reserve(wish("tr_1"), Budget())
    choice = Choice(bundle("top@a"), "old", Assignment("shirts", 1, "old", "top@a", "0" * 32))
    options = TryOnOptions(expert="top")
    work = TryOnWork(options, b"", b"", None, "job_1", timeout_s=1.0, share=Share("acme"))
    error = GenerationFailed("no luck")
    services.recorder.saw(Sighting(work=work, choice=choice, latency_ms=1.0, error=error))

    async def fail() -> None:
        raise ValueError("a key that nobody can read")

    monkeypatch.setattr(services.keys, "flush", fail)
    with pytest.raises(ValueError, match="nobody can read"):
        await services.close()
    assert written.done()
    again = open_database(settings)
    async with again.reading() as session:
        for table in (LedgerEntry, Exposure):
            assert await session.scalar(select(func.count()).select_from(table)) == 1
    await again.close()
