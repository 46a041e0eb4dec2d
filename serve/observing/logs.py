"""Logs: one JSON object a line, with what the request, the job and the replica are called.

Serve opens the files (<session>/logs/serve) and gives each process its handlers; what is here says
what a line looks like, and lets our own loggers and those of libraries write to the same places.
"""

import json
import logging
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import IO, Any

from serve.observing.container_log import ContainerLog
from serve.observing.redaction import CUT, MAX_CHARS, Redactor
from serve.observing.tracing import current_ids
from serve.settings import Settings, known_secrets

SERVE_LOGGER = "ray.serve"
REQUEST_LOGGER = "serve.requests"
OURS = ("serve", "deployments")
MAX_STACK_LINES = 60

LOGGING_CONFIG: Mapping[str, Any] = {"encoding": "JSON", "enable_access_log": False}
"""What Serve is told (`ray.serve.schema.LoggingConfig`). Its line for every hop of a request says
less than our one for the request, serve/api/request_log.py."""

log_context: ContextVar[dict[str, object] | None] = ContextVar("log_context", default=None)
"""What every line says of the request or job that is being worked on here."""

_LINE = "_sm4ll_line"
_LINE_ENDS = {code: f"\\u{code:04x}" for code in (0x85, 0x2028, 0x2029)}
_STANDARD = frozenset(
    {
        *logging.makeLogRecord({}).__dict__,
        *("message", "asctime", "taskName", _LINE, "_ray_timestamp_ns"),
        # What Serve tells its own handlers, and what its replicas and actors are called twice.
        *("skip_context_filter", "serve_access_log", "log_to_stderr", "ray_serve_extra_fields"),
        *("component_name", "component_id", "component_type", "actor_name", "worker_id"),
        *("actor_id", "task_id", "task_name", "task_func_name", "job_id", "node_id"),
    }
)
# Asks the runtime for nine ids on every line; a replica's own id says as much.
_DEAR = "ServeCoreContextFilter"
# Says which replica this is, but only in files.
_NAMING = "ServeComponentFilter"


@contextmanager
def log_fields(**fields: object) -> Iterator[None]:
    """Every line from inside the block says these too."""
    token = log_context.set({**(log_context.get() or {}), **fields})
    try:
        yield
    finally:
        log_context.reset(token)


def log_as(**fields: object) -> None:
    """The same for all that is left of this task, and for what it starts: also whoever called us
    may log how it ended."""
    log_context.set(fields)


def note_fields(**fields: object) -> None:
    """Learned on the way: lines from here on say it, whoever in the innermost block writes them."""
    context = log_context.get()
    if context is not None:
        context.update(fields)


class ContextFilter(logging.Filter):
    """Puts what is known of the request on every record, and lets all of them through."""

    def filter(self, record: logging.LogRecord) -> bool:
        known = record.__dict__
        context = log_context.get()
        if context:
            known.update(context)
        ids = current_ids()
        if ids is not None:
            known["trace_id"], known["span_id"] = ids
        return True


class JsonFormatter(logging.Formatter):
    """Never raises; a record is rendered once, however many handlers want it."""

    def __init__(self, redactor: Redactor):
        super().__init__()
        self._redactor = redactor
        self._second = -1
        self._second_text = ""

    def format(self, record: logging.LogRecord) -> str:
        line = record.__dict__.get(_LINE)
        if line is None:
            line = record.__dict__[_LINE] = self._render_anyhow(record)
        return str(line)

    def _render_anyhow(self, record: logging.LogRecord) -> str:
        try:
            return self._render(record)
        except Exception as exc:  # an exception whose text raises, a value that contains itself
            fields: dict[str, object] = {
                "time": self._time(record.created),
                "level": record.levelname,
                "logger": record.name,
                "message": f"a line that cannot be written: {type(exc).__name__}",
                "source": f"{record.filename}:{record.lineno}",
            }
            return _to_json(fields)

    def _render(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": self._time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": _message(record),
        }
        for name, value in record.__dict__.items():
            if name not in _STANDARD and value is not None:
                fields[name] = value
        extra = record.__dict__.get("ray_serve_extra_fields")
        if isinstance(extra, dict):
            fields.update(extra)
        if record.levelno >= logging.WARNING:
            fields["source"] = f"{record.filename}:{record.lineno}"
        if record.exc_info and record.exc_info[0] is not None:
            fields["exception"] = _exception(record.exc_info[1])
        return self._dump(fields)

    def _dump(self, fields: dict[str, object]) -> str:
        line = _to_json(fields)
        if len(line) <= MAX_CHARS and self._redactor.is_clean(line):
            return line
        return _to_json(self._redactor.clean(json.loads(line)))

    def _time(self, unix_s: float) -> str:
        """RFC 3339, in UTC."""
        second = int(unix_s)
        if second != self._second:
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._second_text}.{int(unix_s % 1 * 1000):03d}Z"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # whatever a stranger's __str__ raises
        return str(record.msg)


def _exception(exc: BaseException | None) -> dict[str, object]:
    if exc is None:
        return {}
    stack = "".join(traceback.format_exception(exc)).splitlines()
    if len(stack) > MAX_STACK_LINES:
        half = MAX_STACK_LINES // 2
        stack = [*stack[:half], "...", *stack[-half:]]
    kind = type(exc)
    return {"type": f"{kind.__module__}.{kind.__qualname__}", "message": str(exc), "stack": stack}


def _to_json(fields: object) -> str:
    line = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), default=_describe)
    if line.isascii():
        return line
    # Half of a surrogate pair, from somebody's file name, could not be written; and there are more
    # ends of lines than one.
    return line.encode("utf-8", "replace").decode().translate(_LINE_ENDS)


def _describe(value: object) -> str:
    # Never what is inside: it may be a picture.
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes {CUT}]"
    shape = getattr(value, "shape", None)
    return f"[{type(value).__name__} {shape}]" if shape is not None else str(value)


def write_json_logs() -> None:
    """What this process logs from here on, by whatever logger, is JSON in Serve's file, and on
    stderr where Serve writes there.

    For the constructors of replicas, where Serve has its handlers ready; nothing anywhere else.
    """
    handlers = logging.getLogger(SERVE_LOGGER).handlers
    if not any(isinstance(handler, MemoryHandler) for handler in handlers):
        return
    settings = Settings()
    formatter = JsonFormatter(Redactor(known_secrets(settings)))
    if settings.log_pipe is not None:
        _add_container_log(handlers, settings.log_pipe)
    named = [known for handler in handlers for known in handler.filters if _is(known, _NAMING)]
    for handler in handlers:
        _convert(handler, formatter)
        for known in named:
            handler.addFilter(known)  # nothing, where it is there
    _share(handlers, settings)


def _add_container_log(handlers: list[logging.Handler], path: Path) -> None:
    """Once in a process; a pipe that cannot be written to costs its lines, not the replica."""
    if any(isinstance(handler, ContainerLog) for handler in handlers):
        return
    try:
        handlers.append(ContainerLog(path))
    except OSError as exc:
        logging.getLogger(SERVE_LOGGER).warning("no lines for the container's log: %s", exc)


def write_json_prints() -> None:
    """Everything that this process prints or logs is JSON lines on stderr: for one whose output is
    a file that nobody watches."""
    settings = Settings()
    formatter = JsonFormatter(Redactor(known_secrets(settings)))
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(ContextFilter())
    handler.setFormatter(formatter)
    _share([handler], settings)
    logging.getLogger(SERVE_LOGGER).handlers = [handler]
    logger = logging.getLogger("serve.console")
    sys.stdout, sys.stderr = LineLog(logger, sys.stdout), LineLog(logger, sys.stderr)


class LineLog:
    """A text stream whose lines go to a logger."""

    def __init__(self, logger: logging.Logger, stream: IO[str]):
        """
        Args:
            stream: answers what else is asked of a stream, such as its number.
        """
        self._logger = logger
        self._stream = stream
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._logger.info("%s", line.rstrip())
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _is(known: object, name: str) -> bool:
    return type(known).__name__ == name


def _convert(handler: logging.Handler, formatter: JsonFormatter) -> None:
    for known in [known for known in handler.filters if _is(known, _DEAR)]:
        handler.removeFilter(known)
    if not any(isinstance(known, ContextFilter) for known in handler.filters):
        handler.addFilter(ContextFilter())
    if not isinstance(handler, MemoryHandler):
        handler.setFormatter(formatter)
        return
    # A thousand lines held back would be lost with a process that dies, and formatted all at once
    # on the event loop: 30 ms.
    handler.capacity = 1
    if handler.target is not None:
        handler.target.setFormatter(formatter)
    handler.flush()


def _share(handlers: list[logging.Handler], settings: Settings) -> None:
    """Our loggers and everybody else's write where Serve's does; others only what is wrong."""
    for name in OURS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = handlers, False
        logger.setLevel(settings.log_level)
    # Ray gives those that it finds here a format of its own when it starts.
    ray = logging.getLogger("ray")
    ray.handlers, ray.propagate = [], True
    ray.setLevel(logging.WARNING)
    root = logging.getLogger()
    root.handlers = handlers
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger(REQUEST_LOGGER).disabled = not settings.log_requests
