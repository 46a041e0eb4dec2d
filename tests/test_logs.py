"""A line of the log is one JSON object that says whose request it is, and tells no secret."""

import asyncio
import base64
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from starlette.types import Message, Receive, Scope, Send

from deployments.backends.base import OnStep
from deployments.backends.noop import NoopBackend
from deployments.expert import Painter
from deployments.recipes import NoopConfig
from serve.api.request_log import RequestLog
from serve.messages import ExpertReply, ExpertRequest
from serve.observing.logs import (
    REQUEST_LOGGER,
    ContextFilter,
    JsonFormatter,
    LineLog,
    log_as,
    log_fields,
    note_fields,
)
from serve.observing.redaction import MAX_CHARS, Redactor
from serve.settings import Settings, known_secrets
from serve.tenancy.keys import mint_key
from tests.pictures import encoded, photo
from tests.scripted import make_request

REDACTOR = Redactor()
FORMATTER = JsonFormatter(REDACTOR)
ALPHANUMERIC = st.characters(codec="ascii", categories=("L", "N"))
TOKENS = st.builds(
    "sk_{}_{}".format,
    st.text(ALPHANUMERIC, min_size=1, max_size=26),
    st.text("0123456789abcdef", min_size=8, max_size=64),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(), lambda own: st.lists(own) | own.map(repr)
)
JPEG = encoded(photo(), "JPEG")
SECRETS = [
    ("Bearer abc.def-ghi", "abc"),
    ("{'Authorization': 'Basic dXNlcjpwYXNz'}", "dXNl"),
    ("key whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw refused", "MfKQ"),
    ("OPENAI sk-proj-0123456789abcdef", "0123"),
    ("FASHN_API_KEY=fa-0123456789abcdef", "0123"),
    ("GET https://shop.example/p.png?X-Amz-Signature=c0ffee&x=1 failed", "c0ffee"),
    ("GET https://me:hush@shop.example/p.png failed", "hush"),
    ("POST https://hooks.example/services/T0/B0/hush-hush", "hush"),
    ("postgresql+asyncpg://sm4ll:hu/sh@db:5432/sm4ll", "hu"),
    ('{"password": "hush", "user": 1}', "hush"),
    ("api_key=hush&token=hush;", "hush"),
    ("AWS_SECRET_ACCESS_KEY=hush", "hush"),
    ("mail of jane.doe@example.com came back", "jane"),
    ("DETAIL:  Key (tenant_id, subject)=(acme, Jane (1)) already exists.", "Jane"),
    ("DETAIL:  Failing row contains (7, Jane, null).", "Jane"),
    ("for jöhn@bücher.example and eye@1", "bücher"),
    (f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}", "4AAQ"),
    (f"input_value='{base64.b64encode(JPEG).decode()[:30]}...'", "4AAQ"),
    (f"cannot decode {JPEG!r}", "xff"),
    (f"half of it: {base64.b64encode(JPEG[300:]).decode()}", base64.b64encode(JPEG[300:360])),
]
PLAIN = [
    "POST /v1/tryon 200",
    "top@noop is served from now on: eye@klein-lora.3, bg@1",
    "webhook wh_01m8a0k3v5r9c2x7p4t6w8y0zb, attempt 2: the server answers 503",
    f"task_identifier {'0' * 64} of req_{'a' * 24}",
    'File "/usr/lib/python3.11/site-packages/sqlalchemy/dialects/postgresql/asyncpg.py", line 1',
    "ask_somebody about 12 passes, 3 tokens and 1 secret",
    "Ready at http://127.0.0.1:8000   (API: http://127.0.0.1:8000/docs)",
]


class Heard(logging.Handler):
    """What a logger writes, as objects."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(ContextFilter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(FORMATTER.format(record)))


@pytest.fixture
def heard() -> Iterator[Heard]:
    heard, logger = Heard(), logging.getLogger("serve")
    logger.addHandler(heard)
    logger.setLevel(logging.INFO)
    yield heard
    logger.removeHandler(heard)
    logger.setLevel(logging.NOTSET)


def render(
    message: str, *args: object, formatter: JsonFormatter = FORMATTER, **fields: object
) -> str:
    record = logging.LogRecord("serve.x", logging.INFO, "x.py", 1, message, args, None)
    record.__dict__.update(fields)
    return formatter.format(record)


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_secret_is_cut_out_wherever_it_is(text: str, secret: str | bytes) -> None:
    told = secret if isinstance(secret, str) else secret.decode()
    assert told not in REDACTOR.redact(text)
    assert told not in render(text)
    assert told not in render("%s", text)
    assert told not in render("x", extra={"inner": [text]})


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_secret_is_told(text: str) -> None:
    assert REDACTOR.redact(text) == text


@given(st.text(), TOKENS, st.text())
def test_no_key_survives(before: str, token: str, after: str) -> None:
    line = render(before + token + after, field=token)
    assert token not in line
    assert token.rpartition("_")[2][:8] not in REDACTOR.redact(token)


@given(st.text(), st.dictionaries(st.text(min_size=1), JSON, max_size=3))
def test_every_record_is_one_line_of_json(message: str, fields: dict[str, Any]) -> None:
    line = render("%s", message, given=fields)
    assert len(line.splitlines()) == 1
    assert {"time", "level", "logger", "message", "given"} <= json.loads(line).keys()


@given(st.binary(min_size=100, max_size=300), st.integers(0, 3))
def test_no_picture_survives_in_base64(data: bytes, start: int) -> None:
    text = base64.b64encode(data).decode()[start:]
    assert text not in render(f"got <{text}>")


def test_secrets_of_the_settings_are_known_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SM4LL_DATABASE_URL", "postgresql://me:p%40ss-word@db/x")
    monkeypatch.setenv("SM4LL_OPENAI_API_KEY", 'quoted "key"')
    redactor = Redactor(known_secrets(Settings()))
    formatter = JsonFormatter(redactor)
    for secret in ("p%40ss-word", "p@ss-word", 'quoted "key"'):
        line = render(f"it is {secret}, is it not", formatter=formatter)
        assert json.loads(line)["message"] == "it is [cut], is it not"


def test_exception_is_told_in_fields_and_cleaned(heard: Heard) -> None:
    token = mint_key().token
    try:
        try:
            raise ValueError(token)
        except ValueError as exc:
            raise RuntimeError("worse") from exc
    except RuntimeError:
        logging.getLogger("serve.x").exception("failed", extra={"data": JPEG})
    (line,) = heard.lines
    assert line["exception"]["type"] == "builtins.RuntimeError"
    assert line["exception"]["message"] == "worse"
    assert "ValueError: [cut]" in line["exception"]["stack"]
    assert line["data"] == f"[{len(JPEG)} bytes [cut]]"
    assert line["source"].startswith("test_logs.py:")


def test_long_text_is_cut_between_words() -> None:
    token = mint_key().token
    text = REDACTOR.redact(f"{'x ' * (MAX_CHARS // 2 - 10)}{token}{' y' * MAX_CHARS}")
    assert text.endswith(f"x [{len(token) + 2 * MAX_CHARS} characters [cut]]")


def test_lines_say_what_is_known_of_the_request_and_its_span(heard: Heard) -> None:
    logger = logging.getLogger("serve.x")

    async def work() -> None:
        log_as(request_id="req_1")
        note_fields(tenant="acme")
        logger.info("first")
        with log_fields(job="job_1"):
            await asyncio.to_thread(logger.info, "in a thread")
        tracer = TracerProvider().get_tracer("test")
        with tracer.start_as_current_span("s") as span:
            logger.info("traced")
            assert heard.lines[-1]["trace_id"] == f"{span.get_span_context().trace_id:032x}"

    asyncio.run(work())
    logger.info("outside")
    first, inner, traced, outside = heard.lines
    assert (first["request_id"], first["tenant"], "job" in first) == ("req_1", "acme", False)
    assert (inner["tenant"], inner["job"]) == ("acme", "job_1")
    assert len(traced["span_id"]) == 16
    assert not {"request_id", "job", "trace_id"} & outside.keys()


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    scope["state"]["problem"] = "not_found"
    note_fields(tenant="acme")
    if scope["path"] == "/broken":
        raise ValueError("unforeseen")
    status = 200 if scope["path"] == "/healthz" else 404
    await send({"type": "http.response.start", "status": status, "headers": []})


@pytest.mark.parametrize(
    ("path", "status"), [("/v1/jane.doe", 404), ("/broken", 500), ("/healthz", None)]
)
def test_request_is_one_line_without_its_path(heard: Heard, path: str, status: int | None) -> None:
    async def send(message: Message) -> None: ...

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def call() -> None:
        scope = {"type": "http", "path": path, "method": "GET", "state": {}}
        try:
            await RequestLog(answer)(scope, receive, send)
        except ValueError:
            logging.getLogger("serve.x").error("unforeseen")

    asyncio.run(call())
    if status is None:
        assert heard.lines == []
        return
    line = heard.lines[0]
    assert line["logger"] == REQUEST_LOGGER
    assert line["message"] == f"GET unmatched {status}"
    assert (line["status"], line["code"], line["tenant"]) == (status, "not_found", "acme")
    assert line["ms"] >= 0
    assert all(other["tenant"] == "acme" for other in heard.lines)


class TalkingBackend(NoopBackend):
    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        logging.getLogger("serve.x").info("painting")
        return super().generate(batch, on_step)


def test_lines_of_a_pass_say_who_is_in_it(heard: Heard) -> None:
    painter = Painter(TalkingBackend("top@noop", NoopConfig(kind="noop")), "top@noop")
    painter.generate([make_request("req_1"), make_request("req_2")], lambda *_: None)
    assert [line["request_id"] for line in heard.lines] == ["req_1,req_2"]


def test_prints_become_lines(heard: Heard) -> None:
    stream = LineLog(logging.getLogger("serve.console"), sys.stderr)
    print("Key:", mint_key().token, file=stream)
    print("half", end="", file=stream)
    assert [line["message"] for line in heard.lines] == ["Key: [cut]"]
    assert stream.isatty() is False


REPLICA = """
import logging, sys, warnings
from ray.serve._private.common import ServeComponentType
from ray.serve._private.logging_utils import configure_component_logger
from ray.serve.schema import LoggingConfig
from serve.observing.logs import LOGGING_CONFIG, write_json_logs

configure_component_logger(
    component_name="sm4ll_Router", component_id="abc", component_type=ServeComponentType.REPLICA,
    logging_config=LoggingConfig(**LOGGING_CONFIG, logs_dir=sys.argv[1]),
    max_bytes=10**6, backup_count=1, buffer_size=1000,
)
write_json_logs()
for name in ("ray.serve", "serve.jobs.runner", "deployments.expert"):
    logging.getLogger(name).info("told by %s", name)
for name in ("ray.data", "httpx2"):
    logging.getLogger(name).warning("told by %s", name)
    logging.getLogger(name).info("not told")
logging.getLogger("serve.requests").error("not told: switched off")
logging.getLogger("ray.serve").info("not told", extra={"serve_access_log": True})
warnings.warn("told by warnings")
"""


def test_every_logger_of_a_replica_writes_json_to_file_and_stderr(tmp_path: Path) -> None:
    """As Serve 2.60 sets a replica up, where it is told to write to stderr as well."""
    environment = {"RAY_SERVE_LOG_TO_STDERR": "1", "SM4LL_LOG_REQUESTS": "false"}
    done = subprocess.run(
        [sys.executable, "-c", REPLICA, str(tmp_path)],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    (file,) = tmp_path.iterdir()
    assert done.stderr == file.read_text()
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["logger"] for line in lines] == [
        *("ray.serve", "serve.jobs.runner", "deployments.expert"),
        *("ray.data", "httpx2", "py.warnings"),
    ]
    assert all("told by" in line["message"] for line in lines)
    assert {(line["deployment"], line["replica"]) for line in lines} == {("sm4ll_Router", "abc")}


def test_what_cannot_be_written_leaves_a_line_that_says_so() -> None:
    class Unspeakable(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    error = Unspeakable()
    record = logging.LogRecord(
        "serve.x", logging.ERROR, "x.py", 7, "failed", (), (Unspeakable, error, None)
    )
    line = json.loads(FORMATTER.format(record))
    assert line["message"] == "a line that cannot be written: RuntimeError"
    assert (line["level"], line["source"]) == ("ERROR", "x.py:7")
