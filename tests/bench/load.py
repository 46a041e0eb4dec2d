"""A closed-loop HTTP/1.1 load generator: N connections, each sends when its answer is in.

Runs as its own process (`python tests/bench/load.py`), so that the server's event loop and the
client's do not share an interpreter; prints one JSON object.
"""

import argparse
import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median


@dataclass
class Seen:
    """What all connections saw."""

    latencies_s: list[float] = field(default_factory=list)
    timings: list[bytes] = field(default_factory=list)
    """`Server-Timing` headers, read when all is over."""

    def stages_ms(self) -> dict[str, float]:
        """The median of each stage."""
        stages: dict[str, list[float]] = {}
        for line in self.timings:
            for entry in line.decode("latin-1").partition(":")[2].split(","):
                name, _, duration = entry.strip().partition(";dur=")
                stages.setdefault(name, []).append(float(duration or "nan"))
        return {name: median(values) for name, values in stages.items()}


class Connection(asyncio.Protocol):
    """Sends the same request again and again and times each answer."""

    def __init__(self, request: bytes, until_s: float, seen: "Seen"):
        self._request = request
        self._until_s = until_s
        self._seen = seen
        self.finished: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._head = b""
        self._missing_bytes = -1
        self._started_s = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._missing_bytes < 0:
            self._head += data
            head, separator, rest = self._head.partition(b"\r\n\r\n")
            if not separator:
                return
            if not head.startswith(b"HTTP/1.1 200"):
                self._finish(head.decode("latin-1").splitlines()[0])
                return
            lines = head.lower().split(b"\r\n")
            length = next(line for line in lines if line.startswith(b"content-length:"))
            self._missing_bytes = int(length.split(b":")[1])
            self._seen.timings += (each for each in lines if each.startswith(b"server-timing:"))
            data = rest
        self._missing_bytes -= len(data)
        if self._missing_bytes == 0:
            now_s = time.perf_counter()
            self._seen.latencies_s.append(now_s - self._started_s)
            if now_s < self._until_s:
                self._send()
            else:
                self._finish("")

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish("connection lost")

    def _finish(self, failure: str) -> None:
        if not self.finished.done():
            self.finished.set_result(failure)
            self._transport.close()


async def measure(
    port: int, request: bytes, num_connections: int, seconds: float
) -> dict[str, object]:
    seen = Seen()
    started_s = time.perf_counter()
    connections = []
    for _ in range(num_connections):
        _, protocol = await asyncio.get_running_loop().create_connection(
            lambda: Connection(request, started_s + seconds, seen), "127.0.0.1", port
        )
        connections.append(protocol)
    failures = await asyncio.gather(*(connection.finished for connection in connections))
    elapsed_s = time.perf_counter() - started_s
    latencies_s = sorted(seen.latencies_s)
    return {
        "num_requests": len(latencies_s),
        "per_s": len(latencies_s) / elapsed_s,
        "p50_ms": percentile_ms(latencies_s, 0.50),
        "p99_ms": percentile_ms(latencies_s, 0.99),
        "stages_ms": seen.stages_ms(),
        "failures": sorted({failure for failure in failures if failure}),
    }


def percentile_ms(sorted_s: list[float], share: float) -> float:
    if not sorted_s:
        return float("nan")
    return sorted_s[min(len(sorted_s) - 1, int(share * len(sorted_s)))] * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--request", type=Path, required=True, help="a whole HTTP/1.1 request")
    parser.add_argument("--connections", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    arguments = parser.parse_args()
    result = asyncio.run(
        measure(
            arguments.port,
            arguments.request.read_bytes(),
            arguments.connections,
            arguments.seconds,
        )
    )
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    main()
