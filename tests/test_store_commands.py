"""`sm4ll store` as an operator meets it: a new database, a ready one, and what is broken."""

import asyncio
from collections.abc import Set
from pathlib import Path

import pytest
import typer
from click.testing import Result
from typer.testing import CliRunner

from serve.commands.store import check, key, prepare, upgrade
from serve.errors import Unauthenticated
from serve.policy import SCOPES
from serve.settings import free_port
from serve.tenancy.key_ring import KeyRing
from tests.stores import opened

app = typer.Typer()
app.command()(upgrade)
app.command()(check)
app.command()(prepare)
app.command()(key)


@pytest.fixture
def variables(empty_url: str, tmp_path: Path) -> dict[str, str]:
    return {"SM4LL_DATABASE_URL": empty_url, "SM4LL_DATA_DIR": str(tmp_path / "data")}


def store(command: str, variables: dict[str, str]) -> Result:
    return CliRunner(env={"COLUMNS": "200", **variables}).invoke(app, [command])


def test_new_database_is_sent_to_upgrade_and_is_then_ready(variables: dict[str, str]) -> None:
    before = store("check", variables)
    assert before.exit_code == 1
    assert "sm4ll store upgrade" in before.output
    assert store("upgrade", variables).exit_code == 0
    assert store("upgrade", variables).exit_code == 0
    after = store("check", variables)
    assert after.exit_code == 0, after.output
    assert "as this version wants it" in after.output
    assert "Blobs: written, read and deleted." in after.output


def test_without_variables_everything_lies_below_the_data_directory(tmp_path: Path) -> None:
    variables = {"SM4LL_DATA_DIR": str(tmp_path / "data")}
    assert store("upgrade", variables).exit_code == 0
    assert store("check", variables).exit_code == 0
    assert (tmp_path / "data/sm4ll.db").is_file()
    assert [path for path in (tmp_path / "data/blobs").rglob("*") if path.is_file()] == []
    assert (tmp_path / "data").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("command", ["upgrade", "check"])
def test_database_that_is_away_is_said_to_be_and_nothing_of_the_password(
    command: str, tmp_path: Path
) -> None:
    url = f"postgresql://me:secret@127.0.0.1:{free_port()}/sm4ll"
    done = store(command, {"SM4LL_DATABASE_URL": url, "SM4LL_DATA_DIR": str(tmp_path)})
    assert done.exit_code == 1
    assert "does not answer" in done.output
    assert "ConnectionRefusedError" in done.output
    assert "secret" not in done.output


def test_url_that_is_none_is_answered_with_one_that_is(tmp_path: Path) -> None:
    done = store("check", {"SM4LL_DATABASE_URL": "mysql://h/d", "SM4LL_DATA_DIR": str(tmp_path)})
    assert done.exit_code == 1
    assert "postgresql://user:password@host/sm4ll" in done.output


def test_blobs_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    variables = {"SM4LL_DATA_DIR": str(tmp_path), "SM4LL_BLOBS_URL": str(tmp_path / "file/blobs")}
    assert store("upgrade", variables).exit_code == 0
    done = store("check", variables)
    assert done.exit_code == 1
    assert "Blobs: no" in done.output


def test_prepared_store_has_an_administrators_key_and_keeps_it(variables: dict[str, str]) -> None:
    first, again = store("prepare", variables), store("prepare", variables)
    assert first.exit_code == 0, first.output
    assert first.output == again.output
    file = Path(variables["SM4LL_DATA_DIR"]) / "local.key"
    assert f"Key: {file.read_text().strip()} " in first.output
    assert file.stat().st_mode & 0o077 == 0
    assert store("check", variables).exit_code == 0


def test_key_that_is_given_becomes_the_first_administrators_and_is_not_shown(
    variables: dict[str, str],
) -> None:
    token = store("key", {}).output.strip()
    given = {**variables, "SM4LL_API_KEY": token}
    first = store("prepare", given)
    assert first.exit_code == 0, first.output
    assert "is the first administrator's" in first.output
    assert asyncio.run(scopes_of(variables, token)) == set(SCOPES)
    other = store("key", {}).output.strip()
    again = store("prepare", {**variables, "SM4LL_API_KEY": other})
    assert again.exit_code == 0, again.output
    assert "works already" in again.output
    with pytest.raises(Unauthenticated):
        asyncio.run(scopes_of(variables, other))
    assert token not in first.output + again.output
    assert not (Path(variables["SM4LL_DATA_DIR"]) / "local.key").exists()


async def scopes_of(variables: dict[str, str], token: str) -> Set[str]:
    async with opened(variables["SM4LL_DATABASE_URL"]) as database:
        ring = KeyRing(database)
        try:
            return (await ring.find_caller(token)).scopes
        finally:
            await ring.flush()


@pytest.mark.parametrize("given", ["", "swordfish", "sk_swordfish\n"])
def test_key_that_is_none_is_refused_before_anything_and_not_repeated(
    given: str, variables: dict[str, str]
) -> None:
    done = store("prepare", {**variables, "SM4LL_API_KEY": given})
    assert done.exit_code == 1
    assert "sm4ll store key" in done.output
    assert "swordfish" not in done.output
    assert store("check", variables).exit_code == 1
