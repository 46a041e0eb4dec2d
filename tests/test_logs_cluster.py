"""Whatever secrets, pictures and names go through a cluster, none of them is in any of its logs."""

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest

from tests.pictures import box_mask, encoded, photo
from tests.tenants import bearer
from tests.up import DATABASE_PASSWORD, PROVIDER_KEY, Up

pytestmark = pytest.mark.ray

GIVE_UP_S = 20.0
PERSON = encoded(photo(), "JPEG", quality=90)
PERSON_64 = base64.b64encode(PERSON).decode()
PERSON_URI = f"data:image/jpeg;base64,{PERSON_64}"
PRODUCT_URI = f"data:image/png;base64,{base64.b64encode(encoded(photo(64, 64, seed=1))).decode()}"
MASK_URI = f"data:image/png;base64,{base64.b64encode(encoded(box_mask())).decode()}"
DAMAGED_URI = f"data:image/jpeg;base64,{PERSON_64[: len(PERSON_64) // 8 * 4]}"
WHO = "jane.doe@example.com"
OWN_ID = "logs-0001"
HOOK = "https://shop.invalid/hook/planted-path-token?token=planted-query-token"
SIGNED = "https://planted-user:planted-word@shop.invalid/p.png?X-Amz-Signature=planted-signature"
STRANGERS_KEY = f"sk_{'7' * 26}_{'f' * 64}"
TENANT = "of-the-logs"


class Session:
    """One user of the cluster, who has much to hide."""

    def __init__(self, up: Up):
        self.key = up.open_tenant(TENANT)
        self.secret = self.job = ""
        self._http = httpx2.Client(base_url=up.url, headers=bearer(self.key), timeout=30)

    def call(self, status: int, method: str, path: str, **arguments: Any) -> httpx2.Response:
        answer = self._http.request(method, path, **arguments)
        assert answer.status_code == status, answer.text[:500]
        return answer

    def tryon(self, status: int, version: str = "noop", **fields: Any) -> httpx2.Response:
        given = {"person": PERSON_URI, "product": PRODUCT_URI, "mask": MASK_URI, **fields}
        body = {"expert": "top", "version": version, "format": "png", **given}
        headers = {"Accept": "application/json", "X-Request-Id": OWN_ID, "Idempotency-Key": WHO}
        if status != 200:
            del headers["Idempotency-Key"]
        return self.call(status, "POST", "/v1/tryon", json=body, headers=headers)

    def do_everything(self) -> None:
        rotated = self.call(201, "POST", "/v1/webhooks/secrets/rotate", json={})
        self.secret = rotated.json()["secret"]
        self.tryon(200)
        self.tryon(422, person=DAMAGED_URI)
        self.tryon(422, product=SIGNED)
        self.tryon(500, version="doomed")
        self.tryon(400, seed=PERSON_URI)
        self.tryon(400, **{PERSON_64[:400]: WHO})
        self.call(401, "GET", "/v1/usage", headers=bearer(STRANGERS_KEY))
        self.call(200, "GET", "/v1/assets", params={"subject": WHO})
        self.call(404, "GET", f"/v1/nothing/{WHO}")
        file = {"file": PERSON}
        self.call(201, "POST", "/v1/assets", files=file, data={"subject": WHO})
        good, bad = self._submit("noop"), self._submit("doomed")
        self.job = bad
        wait_for(lambda: self._read_job(good)["status"] == "succeeded")
        wait_for(lambda: self._read_job(bad)["error"] is not None)
        path = "/v1/webhooks/deliveries"
        wait_for(lambda: self.call(200, "GET", path).json()["items"][0]["attempts"] > 0)
        self.call(200, "POST", "/v1/erasures", json={"subject": WHO})

    def _submit(self, version: str) -> str:
        pictures = {"person": PERSON_URI, "product": PRODUCT_URI, "mask": MASK_URI}
        body = {"expert": "top", "version": version, **pictures, "subject": WHO}
        job = self.call(202, "POST", "/v1/jobs", json={**body, "webhook_url": HOOK})
        return str(job.json()["id"])

    def _read_job(self, job_id: str) -> dict[str, Any]:
        card: dict[str, Any] = self.call(200, "GET", f"/v1/jobs/{job_id}").json()
        return card


def wait_for(is_so: Callable[[], bool]) -> None:
    give_up_s = time.monotonic() + GIVE_UP_S
    while not is_so():
        assert time.monotonic() < give_up_s, "waited in vain"
        time.sleep(0.05)


def logs_dir_of(up: Up) -> Path:
    """`session_latest` is that of whichever cluster started last."""
    for process in psutil.Process(up.process.pid).children(recursive=True):
        found = re.search(r"/\S*?/session_\d[\w.-]+", " ".join(process.cmdline()))
        if found:
            return Path(found[0]) / "logs"
    pytest.fail("no process of Ray's says where its logs are")


def lines_of(logs_dir: Path, pattern: str) -> Iterator[dict[str, Any]]:
    for file in sorted(logs_dir.glob(pattern)):
        for line in file.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                pytest.fail(f"{file.name}: {line[:300]}")


@pytest.fixture(scope="module")
def session(up: Up) -> Session:
    session = Session(up)
    session.do_everything()
    return session


def test_no_secret_no_picture_and_nobodys_name_is_in_any_log(session: Session, up: Up) -> None:
    planted = {
        "the administrator's key": up.key,
        "the tenant's key": session.key,
        "a stranger's key": STRANGERS_KEY,
        "the provider's key": PROVIDER_KEY,
        "the database's password": DATABASE_PASSWORD,
        "the webhook's secret": session.secret,
        "a webhook's path": "planted-path-token",
        "a webhook's query": "planted-query-token",
        "who may fetch": "planted-user",
        "a password to fetch": "planted-word",
        "a signature": "planted-signature",
        "whose picture it is": WHO,
        "the same, quoted": WHO.replace("@", "%40"),
        "how a picture begins": PERSON_64[:40],
        "what it has inside": PERSON_64[400:440],
        "its first bytes": PERSON[:20],
        "the same, printed": repr(PERSON[:8])[2:-1],
    }
    files = [path for path in logs_dir_of(up).rglob("*") if path.is_file()]
    texts: dict[object, bytes] = {file: file.read_bytes() for file in [*files, up.log_file]}
    assert any(OWN_ID.encode() in text for text in texts.values())
    wait_for(lambda: OWN_ID in repr(up.traces.spans))
    texts["spans"] = repr(up.traces.spans).encode()
    leaks = [
        f"{name}: {file}: {context(text, secret)!r}"
        for name, given in planted.items()
        for file, text in texts.items()
        if (secret := given if isinstance(given, bytes) else given.encode()) in text
    ]
    assert not leaks, "\n".join(leaks)


def context(text: bytes, secret: bytes) -> bytes:
    at = text.index(secret)
    return text[max(0, at - 300) : at + 100]


def test_every_line_is_json_and_says_whose_request_it_is(session: Session, up: Up) -> None:
    logs_dir = logs_dir_of(up)
    lines = list(lines_of(logs_dir, "serve/*.log"))
    requests = [line for line in lines if line.get("logger") == "serve.requests"]
    ours = [line for line in requests if line.get("tenant") == TENANT]
    assert all(line["request_id"] and line["deployment"] for line in ours)
    tried = [line for line in ours if line["request_id"] == OWN_ID]
    assert sorted(line["status"] for line in tried) == [200, 400, 400, 422, 422, 500]
    (good,) = (line for line in tried if line["status"] == 200)
    assert (good["route"], good["version"], good["arm"]) == ("/v1/tryon", "top@noop", "explicit")
    assert len(good["trace_id"]) == 32
    (bad,) = (line for line in tried if line["status"] == 500)
    assert bad["code"] == "generation_failed"
    assert any("exception" in line and line.get("request_id") == OWN_ID for line in lines)
    of_job = [line for line in lines if line.get("request_id") == session.job]
    assert {line["deployment"] for line in of_job} >= {"sm4ll_Router", "sm4ll_Expert-top@doomed"}
    of_attempt = [line for line in of_job if line["deployment"] == "sm4ll_Router"]
    assert all(line["tenant"] == TENANT and line["job"] == session.job for line in of_attempt)
    console = [json.loads(line) for line in up.log_file.read_text().splitlines()]
    assert any(line["message"].startswith("Ready at") for line in console)
