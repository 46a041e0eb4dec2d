"""What a first start makes, what a second one leaves, and what only this machine may read."""

from pathlib import Path

import pytest

from serve.errors import ConfigError
from serve.experiments.changes import set_state
from serve.policy import TenantPolicy
from serve.seed_files import load_experiments, load_tenants
from serve.services import require_current_schema
from serve.settings import CONFIGS_DIR, Settings, find_api_key, local_key_file
from serve.store.audit import list_records
from serve.store.columns import utc_now
from serve.store.engine import Database
from serve.store.experiment_tables import ExperimentState
from serve.store.experiments import get_experiment
from serve.store.keys import get_key, revoke
from serve.store.opening import database_url
from serve.store.tables import Tenant
from serve.tenancy.embedded import prepare_store, prepare_with_key
from serve.tenancy.key_ring import KeyRing
from serve.tenancy.keys import mint_key, parse_token
from serve.tenancy.registry import Registry
from tests.stores import opened

pytestmark = pytest.mark.anyio

SEED = "tenants:\n  - id: acme\n    name: Acme\n    policy: {weight: 2}\n"
TRIALS = """experiments:
  - {id: eye-2, expert: eye, start: true, arms: [
      {name: control, version: eye@1, weight: 9000}, {name: new, version: eye@2, weight: 1000}]}
"""


@pytest.fixture
def settings(tmp_path: Path, anyio_backend: str) -> Settings:
    seeds = tmp_path / "tenants.yaml"
    seeds.write_text(SEED)
    trials = tmp_path / "experiments.yaml"
    trials.write_text("experiments: []\n")
    return Settings(
        data_dir=tmp_path / "data",
        tenants=seeds,
        experiments=trials,
        database_url=None,
        api_key=None,
    )


async def policy_of(database: Database, tenant_id: str) -> TenantPolicy:
    async with database.reading() as session:
        tenant = await session.get_one(Tenant, tenant_id)
    return TenantPolicy.model_validate(tenant.policy)


async def test_first_start_makes_a_key_that_only_its_owner_reads(settings: Settings) -> None:
    token = await prepare_store(settings)
    file = local_key_file(settings)
    assert file.read_text().strip() == token
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o077 == 0
    async with opened(database_url(settings)) as database:
        ring = KeyRing(database)
        caller = await ring.find_caller(token)
        await ring.flush()
    assert (caller.tenant_id, caller.policy) == ("local", TenantPolicy())
    assert caller.scopes == {"tryon", "jobs", "versions", "review", "admin"}
    require_current_schema(settings)


async def test_second_start_keeps_the_key(settings: Settings) -> None:
    token = await prepare_store(settings)
    local_key_file(settings).chmod(0o644)
    assert await prepare_store(settings) == token
    assert local_key_file(settings).stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", ["", "rubbish", f"sk_{'0' * 26}_{'0' * 64}"])
async def test_key_that_the_database_does_not_know_is_replaced(
    settings: Settings, content: str
) -> None:
    token = await prepare_store(settings)
    local_key_file(settings).write_text(content)
    other = await prepare_store(settings)
    assert other not in (token, content)
    assert local_key_file(settings).read_text().strip() == other


async def test_given_key_that_was_revoked_does_not_come_back(settings: Settings) -> None:
    token = mint_key().token
    assert await prepare_with_key(settings, token)
    assert not await prepare_with_key(settings, token)
    async with opened(database_url(settings)) as database:
        async with database.transaction() as session:
            revoke(await get_key(session, "admin", parse_token(token)), utc_now())
    with pytest.raises(ConfigError, match="does not work any more") as refused:
        await prepare_with_key(settings, token)
    assert token not in str(refused.value)
    assert await prepare_with_key(settings, mint_key().token)


async def test_seeds_make_what_is_missing_and_change_nothing(settings: Settings) -> None:
    await prepare_store(settings)
    async with opened(database_url(settings)) as database:
        assert (await policy_of(database, "acme")).weight == 2
        await Registry(database).change_tenant("test", "acme", policy=TenantPolicy(weight=5))
        settings.tenants.write_text(SEED.replace("2", "3") + "  - {id: bolt, name: Bolt}\n")
        await prepare_store(settings)
        assert (await policy_of(database, "acme")).weight == 5
        assert (await policy_of(database, "bolt")).weight == 1
        async with database.reading() as session:
            records = await list_records(session, limit=50)
    made = [(record.actor, record.target) for record in reversed(records)]
    assert made[0] == ("seeds", "acme")
    assert ("seeds", "bolt") in made


async def test_experiments_are_made_where_they_are_missing_and_never_changed(
    settings: Settings,
) -> None:
    file = settings.experiments
    file.write_text(TRIALS)
    await prepare_store(settings)
    async with opened(database_url(settings)) as database:
        async with database.transaction() as session:
            made = await get_experiment(session, "eye-2")
            assert (made.state, made.created_by) == (ExperimentState.RUNNING, "seeds")
            await set_state(session, "eye-2", ExperimentState.ENDED, reason="", now=made.created_at)
        file.write_text(TRIALS.replace("9000", "5000").replace("1000", "5000"))
        await prepare_store(settings)
        async with database.reading() as session:
            again = await get_experiment(session, "eye-2")
            acts = [record.action for record in await list_records(session, limit=50)]
    assert (again.state, again.design) == (ExperimentState.ENDED, made.design)
    assert acts.count("experiment.create") == 1
    doubled = TRIALS.replace("expert: eye", "namespace: {name: n}, expert: eye")
    one, two = doubled.replace("eye-2", "one"), doubled.replace("eye-2", "two")
    file.write_text(one + two.removeprefix("experiments:\n"))
    with pytest.raises(ConfigError, match="two: in the namespace"):
        await prepare_store(settings)


def test_shipped_experiments_load_and_their_example_too(tmp_path: Path) -> None:
    shipped = CONFIGS_DIR / "experiments.yaml"
    assert load_experiments(shipped).experiments == ()
    example = [line[2:] for line in shipped.read_text().splitlines() if line[:3] in ("# -", "#  ")]
    file = tmp_path / "experiments.yaml"
    file.write_text("experiments:\n" + "\n".join(example))
    (shown,) = load_experiments(file).experiments
    assert (shown.id, shown.start) == ("eye-2", True)
    file.write_text(TRIALS + TRIALS.removeprefix("experiments:\n"))
    with pytest.raises(ConfigError, match="listed twice: eye-2"):
        load_experiments(file)


async def test_database_without_this_versions_tables_is_refused(settings: Settings) -> None:
    with pytest.raises(ConfigError, match="sm4ll store upgrade"):
        require_current_schema(settings)


def test_shipped_seeds_load_and_doubled_ids_are_refused(tmp_path: Path) -> None:
    load_tenants(CONFIGS_DIR / "tenants.yaml")
    file = tmp_path / "tenants.yaml"
    file.write_text("tenants: [{id: a, name: A}, {id: a, name: B}]")
    with pytest.raises(ConfigError, match="listed twice: a"):
        load_tenants(file)


@pytest.mark.parametrize(
    ("url", "is_sent"),
    [
        ("http://127.0.0.1:8000", True),
        ("http://localhost:8000/", True),
        ("http://[::1]:8000", True),
        ("https://api.example.com", False),
        ("http://127.0.0.1.example.com", False),
        ("http://user@example.com#@127.0.0.1", False),
    ],
)
def test_local_key_never_leaves_this_machine(tmp_path: Path, url: str, is_sent: bool) -> None:
    (tmp_path / "local.key").write_text("sk_local\n")
    settings = Settings(data_dir=tmp_path, api_key=None)
    assert find_api_key(settings, url) == ("sk_local" if is_sent else None)


def test_key_of_the_settings_goes_first_and_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "local.key").write_text("sk_local")
    monkeypatch.setenv("SM4LL_API_KEY", "sk_mine")
    settings = Settings(data_dir=tmp_path)
    assert find_api_key(settings, "http://127.0.0.1:8000") == "sk_mine"
    assert find_api_key(settings, "https://api.example.com") == "sk_mine"
    assert "sk_mine" not in repr(settings)
