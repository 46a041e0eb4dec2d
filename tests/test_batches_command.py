"""`sm4ll batches` against the real API, from folders of pictures to a page of results."""

import io
import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from fastapi import FastAPI
from rich.console import Console
from starlette.testclient import TestClient
from typer.main import get_command
from typer.testing import CliRunner, Result

from serve.cli import app
from serve.client import ApiError, Client
from serve.commands import batch_files, batches
from serve.commands.batch_files import name_outputs
from serve.commands.batches import draw_progress, tell_estimate
from serve.commands.patience import patiently
from serve.policy import TenantPolicy
from serve.schemas.batches import Manifest
from serve.schemas.problems import Problem
from tests.fakes import build_local_api
from tests.pictures import box_mask, encoded, photo
from tests.tenants import LOCAL_TOKEN, add_key_to
from tests.test_tenants_command import Through
from tests.up import EXPERT

FAMILY = "experts: [{version: top@noop, autoscaling: {max_replicas: 1}}]\n"
UNKNOWN = "bat_" + "0" * 26
NOWHERE = "https://unknown.example.org/a.png"


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    folder = tmp_path_factory.mktemp("family")
    (folder / "experts").mkdir()
    (folder / "experts/top.noop.yaml").write_text(EXPERT)
    (folder / "family.yaml").write_text(FAMILY)
    return build_local_api(folder / "family.yaml")


@pytest.fixture(scope="module")
def http(api: FastAPI) -> Iterator[TestClient]:
    with TestClient(api) as http:
        yield http


@pytest.fixture(autouse=True)
def connected(http: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    connect_as(http, monkeypatch, LOCAL_TOKEN)
    monkeypatch.setattr(batches, "POLL_S", 0.02)


def connect_as(http: TestClient, monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    def connect(url: str | None) -> Client:
        return Client("http://testserver", token, Through(http))

    monkeypatch.setattr(batches, "connect", connect)
    monkeypatch.setattr(batch_files, "connect", connect)


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Two persons with masks, a shirt, and a list with a shirt that nobody can fetch."""
    for name in ("products", "persons", "masks"):
        (tmp_path / name).mkdir()
    (tmp_path / "products/shirt.png").write_bytes(encoded(photo(64, 64, seed=1)))
    for name in ("anna", "ben"):
        (tmp_path / f"persons/{name}.png").write_bytes(encoded(photo(seed=len(name))))
        (tmp_path / f"masks/{name}.png").write_bytes(encoded(box_mask()))
    (tmp_path / "persons/notes.txt").write_text("no picture")
    rows = f"note,sku,image\nred,A/1,products/shirt.png\nblue,A:1,{NOWHERE}\n"
    (tmp_path / "list.csv").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    return tmp_path


def sm4ll(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["batches", *arguments])


def said(*arguments: str) -> str:
    result = sm4ll(*arguments)
    assert result.exit_code == 0, f"{result.output}{result.exception!r}"
    return result.stdout.strip()


def create(shop: Path, *more: str, products: str = "products") -> str:
    folders = ("--persons", str(shop / "persons"), "--masks", str(shop / "masks"))
    what = ("--expert", "top", "--products", str(shop / products))
    return said("create", *what, *folders, *more)


def shirts(shop: Path, num: int) -> None:
    """More than are done between two calls, 0.1 s each."""
    rows = [f"shirt-{n},products/shirt.png" for n in range(num)]
    (shop / "many.csv").write_text("\n".join(["sku,image", *rows]))


class Sheet(HTMLParser):
    """What a reader of the page is told."""

    def __init__(self) -> None:
        super().__init__()
        self.pictures: dict[str, str] = {}
        self.words = ""
        self._is_shown = True

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_shown = tag != "style"
        given = dict(attrs)
        assert "http" not in " ".join(value or "" for value in given.values())
        if tag == "img":
            self.pictures[given["alt"] or ""] = unquote(given["src"] or "")

    def handle_data(self, data: str) -> None:
        self.words += data if self._is_shown else ""


def read_sheet(page: Path) -> Sheet:
    sheet = Sheet()
    sheet.feed(page.read_text(encoding="utf-8"))
    return sheet


def test_folders_become_pictures_and_a_page_that_says_why_some_are_missing(shop: Path) -> None:
    batch = create(shop, "--start", "--format", "webp", products="list.csv")
    followed = sm4ll("follow", batch)
    assert followed.exit_code == 1
    assert "finished: 2 succeeded, 2 failed" in followed.stdout
    assert f"sm4ll batches retry {batch}" in followed.stderr
    said("manifest", batch, "-o", str(shop / "manifest.json"))
    told = json.loads((shop / "manifest.json").read_text())
    assert [(cell["sku"], cell["person"]) for cell in told["cells"]] == [
        (sku, person) for sku in ("A/1", "A:1") for person in ("anna", "ben")
    ]
    assert json.loads(said("manifest", batch)) == told
    out = shop / "out"
    assert said("download", batch, "--out", str(out)).startswith("2 pictures")
    assert sorted(path.name for path in out.iterdir()) == [
        *("A_1__anna.webp", "A_1__ben.webp", "index.html")
    ]
    sheet = read_sheet(out / "index.html")
    assert sheet.pictures == {f"A/1 on {who}": f"A_1__{who}.webp" for who in ("anna", "ben")}
    error = told["cells"][2]["error"]
    assert sheet.words.count(f"{error['title']}: {error['detail']}") == 2
    assert sheet.words.count("succeeded") == 2


def test_second_download_fetches_only_what_is_not_whole(
    shop: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = create(shop, "--start")
    assert said("follow", batch).endswith("finished: 2 succeeded")
    out = shop / "out"
    said("download", batch, "--out", str(out))
    whole = {path: path.read_bytes() for path in out.glob("*.png")}
    broken = out / "shirt__ben.png"
    broken.write_bytes(whole[broken][:100])
    fetched: list[str] = []
    download = Client.download

    def counted(client: Client, path: str) -> bytes:
        fetched.append(path)
        return download(client, path)

    monkeypatch.setattr(Client, "download", counted)
    assert said("download", batch, "--out", str(out)).startswith("2 pictures")
    assert {path: path.read_bytes() for path in out.glob("*.png")} == whole
    assert len(fetched) == 1


def test_deleted_picture_is_said_in_its_cell(shop: Path, http: TestClient) -> None:
    batch = create(shop, "--start")
    said("follow", batch)
    first = json.loads(said("manifest", batch))["cells"][0]
    assert http.delete(f"/v1/assets/{first['outputs'][0]['asset']}").status_code == 200
    assert said("download", batch, "--out", str(shop / "out")).startswith("1 pictures")
    sheet = read_sheet(shop / "out/index.html")
    assert "not kept any longer" in sheet.words
    assert list(sheet.pictures) == ["shirt on ben"]


def test_batch_is_paused_resumed_and_cancelled(shop: Path) -> None:
    shirts(shop, 15)
    batch = create(shop, "--start", products="many.csv")
    assert f"{batch}  paused" in said("pause", batch)
    assert json.loads(said("show", batch))["status"] == "paused"
    assert f"{batch}  running" in said("resume", batch)
    assert f"{batch}  cancelled" in said("cancel", batch)
    followed = said("follow", batch)
    assert "cancelled:" in followed
    refused = sm4ll("retry", batch)
    assert isinstance(refused.exception, ApiError)
    assert refused.exception.problem.code == "conflict"
    assert batch in said("list", "--limit", "1")


def test_failed_cells_are_tried_again_one_or_all(shop: Path) -> None:
    batch = create(shop, "--start", products="list.csv")
    sm4ll("follow", batch)
    assert "running" in said("retry", batch, "--cell", "2")
    assert "2 failed" in sm4ll("follow", batch).stdout
    assert "running" in said("retry", batch)
    assert "2 failed" in sm4ll("follow", batch).stdout


def test_draft_says_how_to_start_it_and_waits_for_that(shop: Path) -> None:
    result = sm4ll(
        *("create", "--expert", "top", "--products", str(shop / "products")),
        *("--persons", str(shop / "persons"), "--masks", str(shop / "masks")),
    )
    batch = result.stdout.strip()
    assert f"sm4ll batches start {batch}" in result.stderr
    followed = sm4ll("follow", batch)
    assert followed.exit_code == 1
    assert f"sm4ll batches start {batch}" in followed.stderr
    said("start", batch)
    assert said("follow", batch).endswith("finished: 2 succeeded")


def test_estimate_beyond_the_budget_is_said(
    shop: Path, api: FastAPI, http: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_as(http, monkeypatch, add_key_to(api, "poor", policy=TenantPolicy(monthly_images=1)))
    batch = create(shop)
    with batches.connect(None) as client:
        assert "more than is left" in tell_estimate(client.batches.get(batch))


def test_same_file_twice_is_uploaded_once(shop: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shirts(shop, 15)
    sent: list[str] = []
    handle = Through.handle_request

    def counted(through: Through, request: Any) -> Any:
        sent.append(request.url.path)
        return handle(through, request)

    monkeypatch.setattr(Through, "handle_request", counted)
    create(shop, products="many.csv")
    assert sent.count("/v1/assets") == 5  # a shirt, two persons, two masks


@pytest.mark.parametrize("group", ["batches", "assets", "webhooks", "outcomes"])
def test_every_help_has_an_example(group: str) -> None:
    for path, command in list_commands(get_command(app).commands[group], f"sm4ll {group}"):  # type: ignore[attr-defined]
        assert f"For example: {path} " in " ".join(f"{command.help} ".split()) + " "


def list_commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    for name, child in command.commands.items():
        if hasattr(child, "commands"):
            yield from list_commands(child, f"{path} {name}")
        else:
            yield f"{path} {name}", child


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("list.csv", "sku;image\na;b.png\n", "sku and image"),
        ("list.csv", "", "sku and image"),
        ("list.csv", "sku,image\n", "names no product"),
        ("list.csv", "sku,image\na,nowhere.png\n", "line 2"),
        ("list.csv", "sku,image\na,\n", "line 2"),
        ("list.csv", "sku,image\na\n", "line 2"),
        ("list.csv", f"sku,image\na,{NOWHERE}\na,{NOWHERE}\n", "line 3"),
        ("list.csv", f"sku,image\n{'a' * 101},{NOWHERE}\n", "sku"),
        ("masks/carl.png", "x", "carl"),
        ("persons/anna.jpg", "x", "the same name twice"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_sent(
    shop: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str, word: str
) -> None:
    monkeypatch.setattr(batches, "connect", None)
    (shop / file).write_text(content)
    result = sm4ll(
        *("create", "--expert", "top", "--products", str(shop / "list.csv")),
        *("--persons", str(shop / "persons"), "--masks", str(shop / "masks")),
    )
    assert result.exit_code == 2, result.exception
    assert word in " ".join(result.stderr.replace("│", " ").split())


@pytest.mark.parametrize(
    "option", [("--expert", "hat"), ("--quality", "best"), ("--format", "gif")]
)
def test_wrong_option_is_named_before_anything_is_sent(
    shop: Path, monkeypatch: pytest.MonkeyPatch, option: tuple[str, str]
) -> None:
    monkeypatch.setattr(batches, "connect", None)
    result = sm4ll(
        *("create", "--expert", "top", "--products", str(shop / "products")),
        *("--persons", str(shop / "persons"), *option),
    )
    assert result.exit_code == 2
    assert option[0].removeprefix("--") in result.stderr


@pytest.mark.parametrize("act", ["show", "start", "pause", "resume", "cancel", "retry", "follow"])
def test_unknown_batch_is_said_so(act: str) -> None:
    result = sm4ll(act, UNKNOWN)
    assert isinstance(result.exception, ApiError)
    assert result.exception.problem.code == "not_found"


def manifest_of(*places: tuple[str, str]) -> Manifest:
    output = {"asset": "ast_1", "media_type": "image/png", "width": 1, "height": 1}
    made = {**output, "sha256": "0" * 64, "url": "/v1/assets/ast_1/content"}
    cells = [
        {"cell": cell, "sku": sku, "person": person, "status": "succeeded", "job": "job_1"}
        for cell, (sku, person) in enumerate(places)
    ]
    numbers = dict.fromkeys(("queued", "running", "failed", "cancelled"), 0)
    return Manifest.model_validate(
        {
            "batch": "bat_1",
            "status": "finished",
            "version": "top@noop",
            "counts": {**numbers, "succeeded": len(cells)},
            "finished_at": "2026-11-25T00:00:00Z",
            "cells": [
                {**cell, "outputs": [made, made], "receipt": None, "error": None} for cell in cells
            ],
        }
    )


def test_names_of_files_stay_in_the_folder_and_apart() -> None:
    names = name_outputs(
        manifest_of(
            *(("../../etc/x", "a"), ("a b", "p"), ("a?b", "p"), ("A_B", "p")),
            *(("衬" * 100, "ж" * 100), (".", "..")),
        )
    )
    flat = [name for of_cell in names.values() for name in of_cell]
    assert len({name.casefold() for name in flat}) == len(flat) == 12
    for name in flat:
        assert "/" not in name
        assert not name.startswith(".")
        assert len(name.encode()) < 255
    assert names[0] == ("_.._etc_x__a.png", "_.._etc_x__a-1.png")
    assert names[2][0] == "a_b__p__2.png"


def test_page_escapes_what_others_wrote(tmp_path: Path) -> None:
    from serve.commands.contact_sheet import write_sheet

    made = manifest_of(("<script>alert(1)</script>", '"><img src=x>'))
    page = write_sheet(tmp_path, made, name_outputs(made))
    assert "<script" not in page.read_text()
    assert len(read_sheet(page).pictures) == 2


def test_progress_tells_rate_and_what_remains() -> None:
    now_s = 0.0
    screen = Console(file=io.StringIO(), force_terminal=True, width=120, record=True)
    progress = draw_progress(screen, lambda: now_s)
    bar = progress.add_task("", total=100)
    for done in (0, 10, 20):
        progress.update(bar, completed=done, description="running: 80 queued")
        now_s += 10
    screen.print(progress.get_renderable())
    text = screen.export_text()
    for words in ("20/100", "60.0/min", "0:01:20", "running: 80 queued"):
        assert words in text


def test_one_too_many_in_a_minute_waits_as_long_as_it_is_told() -> None:
    problem = Problem(
        type="",
        title="",
        status=429,
        detail="",
        code="rate_limited",
        request_id="",
        retry_after_s=7,
    )
    outcomes: list[Exception | str] = [ApiError(problem), ApiError(problem), "done"]
    waited_s: list[float] = []

    def call() -> str:
        outcome = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert patiently(call, waited_s.append) == "done"
    assert waited_s == [7, 7]
    outcomes = [ApiError(problem.model_copy(update={"code": "quota_exhausted"}))]
    with pytest.raises(ApiError):
        patiently(call, waited_s.append)
    assert len(waited_s) == 2
