"""A real OTLP/HTTP receiver: decodes what is posted to it as a collector does, and keeps it."""

import gzip
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1 import trace_pb2

ERROR = trace_pb2.Status.STATUS_CODE_ERROR
TRACES_PATH = "/v1/traces"


@dataclass(frozen=True)
class Event:
    name: str
    unix_ns: int
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Span:
    name: str
    scope: str
    trace_id: str
    span_id: str
    parent_id: str
    """Empty where there is none."""
    started_ns: int
    ended_ns: int
    attributes: Mapping[str, Any]
    events: tuple[Event, ...]
    links: tuple[tuple[str, str], ...]
    """Trace and span."""
    is_error: bool
    resource: Mapping[str, Any]

    @property
    def ms(self) -> float:
        return (self.ended_ns - self.started_ns) / 1e6


@dataclass
class Receiver:
    url: str
    spans: list[Span] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def take(self, body: bytes) -> None:
        with self.changed:
            self.spans.extend(read_spans(body))
            self.changed.notify_all()

    def find(self, is_it: Callable[[Span], object], timeout_s: float = 20.0) -> Span:
        """The first that is, of any trace."""
        found: list[Span] = []

        def look() -> bool:
            found.extend(span for span in self.spans if is_it(span))
            return bool(found)

        with self.changed:
            assert self.changed.wait_for(look, timeout_s), f"no such span in {timeout_s:.0f} s"
        return found[0]

    def wait_for(
        self, trace_id: str, is_there: Callable[[Sequence[Span]], object], timeout_s: float = 20.0
    ) -> list[Span]:
        """All spans of the trace, once they are what is wanted."""
        with self.changed:
            came = self.changed.wait_for(lambda: is_there(self.of(trace_id)), timeout_s)
            spans = self.of(trace_id)
        assert came, f"after {timeout_s:.0f} s there are {sorted(span.name for span in spans)}"
        return spans

    def of(self, trace_id: str) -> list[Span]:
        return [span for span in self.spans if span.trace_id == trace_id]


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on a free port, until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path != TRACES_PATH:
                self.send_error(404)
                return
            receiver.take(body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(200)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    receiver = Receiver(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def read_spans(body: bytes) -> Iterator[Span]:
    """Of the protobuf encoding (opentelemetry-proto, `ExportTraceServiceRequest`)."""
    for of_resource in ExportTraceServiceRequest.FromString(body).resource_spans:
        resource = _read(of_resource.resource.attributes)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                yield _span(span, of_scope.scope.name, resource)


def _span(span: trace_pb2.Span, scope: str, resource: Mapping[str, Any]) -> Span:
    return Span(
        name=span.name,
        scope=scope,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        started_ns=span.start_time_unix_nano,
        ended_ns=span.end_time_unix_nano,
        attributes=_read(span.attributes),
        events=tuple(
            Event(event.name, event.time_unix_nano, _read(event.attributes))
            for event in span.events
        ),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        is_error=span.status.code == ERROR,
        resource=resource,
    )


def _read(pairs: Sequence[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    return None if kind is None else getattr(value, kind)
