"""Whatever process dies, every accepted job ends exactly once and the ledger balances.

The job runner, a router, an expert and Serve's controller are killed with SIGKILL while 500 jobs
run, on a real PostgreSQL and a real Redis; the callers repeat under their idempotency keys.
"""

import asyncio
import contextlib
import hashlib
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import asyncpg
import httpx2
import pytest

from tests.pictures import box_mask, encoded, photo
from tests.tenants import bearer
from tests.up import Up

pytestmark = pytest.mark.ray

TENANT = "chaos"
NUM_JOBS = 500
NUM_CALLERS = 8
GIVE_UP_S = 420.0
VICTIMS = {
    "job runner": "ServeReplica:sm4ll:JobRunner",
    "router": "ServeReplica:sm4ll:Router",
    "expert": "ServeReplica:sm4ll:Expert-top@noop",
    "controller": "ServeController",
}


class Books:
    """What the database says of one tenant, read past the product."""

    def __init__(self, url: str):
        self._url = url

    def read(self, columns: str, table: str, rest: str = "") -> list[asyncpg.Record]:
        statement = f"SELECT {columns} FROM {table} WHERE tenant_id = '{TENANT}' {rest}"

        async def fetch() -> list[asyncpg.Record]:
            connection = await asyncpg.connect(self._url)
            try:
                return list(await connection.fetch(statement))
            finally:
                await connection.close()

        return asyncio.run(fetch())

    def num_ended(self) -> int:
        return int(self.read("count(*)", "jobs", "AND finished_at IS NOT NULL")[0][0])


class Caller:
    """One that is careful: tries again under the same key until there is an answer."""

    def __init__(self, up: Up):
        self._url = up.url
        self._headers = bearer(up.open_tenant(TENANT))

    def upload(self) -> dict[str, str]:
        pictures = {"person": photo(), "product": photo(64, 64, seed=1), "mask": box_mask()}
        ids = {}
        for name, picture in pictures.items():
            files = {"file": (f"{name}.png", encoded(picture), "image/png")}
            answer = httpx2.post(
                f"{self._url}/v1/assets", files=files, headers=self._headers, timeout=60
            )
            assert answer.status_code == 201, answer.text
            ids[name] = answer.json()["id"]
        return ids

    def submit(self, body: dict[str, str], index: int) -> str:
        headers = {**self._headers, "Idempotency-Key": f"order-{index}"}
        give_up_s = time.monotonic() + GIVE_UP_S
        while time.monotonic() < give_up_s:
            with contextlib.suppress(httpx2.TransportError):
                answer = httpx2.post(
                    f"{self._url}/v1/jobs",
                    json={**body, "seed": index},
                    headers=headers,
                    timeout=30,
                )
                if answer.status_code == 202:
                    return str(answer.json()["id"])
                assert answer.status_code >= 500 or answer.status_code == 429, answer.text
            time.sleep(0.1)
        raise AssertionError(f"job {index} was never accepted")

    def get(self, path: str) -> httpx2.Response:
        return httpx2.get(f"{self._url}{path}", headers=self._headers, timeout=30)


def wait_until_ended(books: Books, num_jobs: int, up: Up) -> None:
    give_up_s = time.monotonic() + GIVE_UP_S
    while (num_ended := books.num_ended()) < num_jobs:
        if not up.is_alive or time.monotonic() > give_up_s:
            pytest.fail(f"waited in vain for {num_jobs} jobs to end: {num_ended} have")
        time.sleep(0.1)


def test_kills_of_every_process_lose_no_job_and_charge_none_twice(up: Up) -> None:
    caller, books = Caller(up), Books(up.database_url)
    body = {"expert": "top", "version": "noop", "format": "png", **caller.upload()}
    with ThreadPoolExecutor(NUM_CALLERS) as threads:
        accepted = [threads.submit(caller.submit, body, index) for index in range(NUM_JOBS)]
        killed = []
        for turn, victim in enumerate(VICTIMS, start=1):
            wait_until_ended(books, turn * NUM_JOBS // 6, up)
            assert books.num_ended() < NUM_JOBS, f"all was over before the {victim} died"
            killed.append(up.kill(VICTIMS[victim]))
        ids = [each.result() for each in accepted]
    wait_until_ended(books, NUM_JOBS, up)
    assert len(set(killed)) == len(VICTIMS)
    assert len(set(ids)) == NUM_JOBS
    assert_every_job_ended_once(books, ids)
    assert_books_balance(books)
    assert_results_are_there(caller, ids)


def assert_every_job_ended_once(books: Books, ids: list[str]) -> None:
    jobs = books.read("state, attempts", "jobs")
    assert Counter(job["state"] for job in jobs) == {"succeeded": NUM_JOBS}
    assert max(job["attempts"] for job in jobs) > 1, "nothing ran when a process died"
    ends = books.read("job_id, count(*)", "job_events", "AND kind = 'finished' GROUP BY 1")
    assert {end["job_id"]: end["count"] for end in ends} == dict.fromkeys(ids, 1)


def assert_books_balance(books: Books) -> None:
    """To the millisecond: entries, their sums, and what each answer says that it took."""
    entries = books.read("*", "usage_ledger")
    assert len(entries) == NUM_JOBS
    assert {entry["state"] for entry in entries} == {"settled"}
    (counter,) = books.read("*", "usage_counters")
    assert (counter["reserved_gpu_ms"], counter["reserved_images"]) == (0, 0)
    assert counter["settled_gpu_ms"] == sum(entry["settled_gpu_ms"] for entry in entries)
    assert counter["settled_images"] == NUM_JOBS
    said_s = {
        job["id"]: json.loads(job["result"])["receipt"]["usage"]["gpu_s"]
        for job in books.read("id, result", "jobs")
    }
    for entry in entries:
        assert entry["settled_gpu_ms"] == pytest.approx(1e3 * said_s[entry["work_item"]], abs=0.51)


def assert_results_are_there(caller: Caller, ids: list[str]) -> None:
    for job_id in ids[:: NUM_JOBS // 20]:
        (output,) = caller.get(f"/v1/jobs/{job_id}").json()["outputs"]
        data = caller.get(output["url"]).content
        assert hashlib.sha256(data).hexdigest() == output["sha256"]
