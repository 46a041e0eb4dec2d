"""People who try things on all the time, each of them once, over real HTTP."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2

from tests.tenants import bearer


@dataclass(frozen=True)
class Answered:
    """One request as its caller saw it."""

    unit: str
    status: int
    arm: str
    version: str
    experiment: str
    request_id: str
    at_s: float
    """When the answer had come."""


@dataclass
class Crowd:
    """Callers of one try-on with a unit that never comes twice, unless it is asked again."""

    url: str
    token: str
    options: Mapping[str, str]
    pick: Callable[[str], Mapping[str, bytes]]
    """The pictures of a unit."""
    num_callers: int = 8
    answers: list[Answered] = field(default_factory=list)
    _local: threading.local = field(default_factory=threading.local, repr=False)

    def ask(self, unit: str) -> Answered:
        http = getattr(self._local, "http", None)
        if http is None:
            http = self._local.http = httpx2.Client(timeout=120)
        answer = http.post(
            f"{self.url}/v1/tryon",
            data={**self.options, "unit": unit},
            files={name: (name, data) for name, data in self.pick(unit).items()},
            headers=bearer(self.token),
        )
        seen = Answered(
            unit=unit,
            status=answer.status_code,
            arm=answer.headers.get("sm4ll-arm", ""),
            version=answer.headers.get("sm4ll-version", ""),
            experiment=answer.headers.get("sm4ll-experiment", ""),
            request_id=answer.headers.get("x-request-id", ""),
            at_s=time.monotonic(),
        )
        self.answers.append(seen)
        return seen

    def ask_all(self, units: list[str]) -> list[Answered]:
        with ThreadPoolExecutor(self.num_callers) as callers:
            return list(callers.map(self.ask, units))

    @contextmanager
    def asking(self, name: str) -> Iterator[None]:
        """New units, one after the other, from every caller until the block ends."""
        numbers, over = itertools.count(), threading.Event()

        def call() -> None:
            while not over.is_set():
                self.ask(f"{name}-{next(numbers)}")

        with ThreadPoolExecutor(self.num_callers) as callers:
            calls = [callers.submit(call) for _ in range(self.num_callers)]
            try:
                yield
            finally:
                over.set()
            for one in calls:
                one.result()

    def failed(self) -> list[Answered]:
        """With who answered them, which is what one asks next."""
        return [answer for answer in self.answers if answer.status != 200]

    def statuses(self) -> Counter[int]:
        return Counter(answer.status for answer in self.answers)
