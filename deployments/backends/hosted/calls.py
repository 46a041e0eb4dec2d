"""HTTP calls to a third party: retried where that cannot be charged twice, with jitter."""

from collections.abc import Awaitable, Callable
from typing import Any

import httpx2
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt
from tenacity.wait import wait_random_exponential

from serve.errors import Overloaded, UpstreamFailed

# Nothing reached the API: asking again cannot be charged twice.
UNSENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)
MAX_WAIT_S = 20.0
DEFAULT_RETRY_AFTER_S = 5.0

Send = Callable[[], Awaitable[httpx2.Response]]


class Refused(Exception):
    """The API answered with an error status; its reader says what that means."""

    def __init__(self, response: httpx2.Response):
        super().__init__(f"{response.status_code}: {response.text[:300]}")
        self.response = response

    @property
    def status(self) -> int:
        return self.response.status_code

    @property
    def body(self) -> dict[str, Any]:
        """The JSON answer; empty when it is none."""
        try:
            body = self.response.json()
        except ValueError:
            return {}
        return body if isinstance(body, dict) else {}

    @property
    def retry_after_s(self) -> float | None:
        try:
            return max(0.0, float(self.response.headers["retry-after"]))
        except (KeyError, ValueError):
            return None


class Caller:
    """Sends one API's calls.

    Args:
        name: of the API, for messages.
        is_final: says which refusals no repetition will change, such as an empty account.
    """

    def __init__(
        self,
        name: str,
        max_attempts: int,
        is_final: Callable[[Refused], bool],
        min_wait_s: float = 1.0,
    ):
        self._name = name
        self._max_attempts = max_attempts
        self._is_final = is_final
        self._min_wait_s = min_wait_s

    async def send(self, send: Send, is_repeatable: bool = False) -> httpx2.Response:
        """Send, again where that is safe, and return the successful answer.

        Args:
            is_repeatable: repeating has no effect there, so even an answer that got lost is asked
                for again. Without it only what was refused or never sent is.

        Raises:
            Refused: the API said no.
            Overloaded: it asks to come later than we are willing to wait.
            UpstreamFailed: it cannot be reached, or went silent.
        """
        again = (httpx2.TransportError,) if is_repeatable else UNSENT

        def is_transient(exc: BaseException) -> bool:
            if isinstance(exc, Refused):
                return (exc.status == 429 or exc.status >= 500) and not self._is_final(exc)
            return isinstance(exc, again)

        retrying = AsyncRetrying(
            retry=retry_if_exception(is_transient),
            stop=stop_after_attempt(self._max_attempts),
            wait=self._wait,
            reraise=True,
        )
        try:
            return await retrying(_send_once, send)
        except httpx2.TransportError as exc:
            raise UpstreamFailed(
                f"{self._name} does not answer: {type(exc).__name__}: {exc}",
                remedy="try again later, or use another version",
            ) from exc
        except Refused as exc:
            if exc.status == 429 and not self._is_final(exc):
                raise Overloaded(
                    f"{self._name} is at its limit",
                    retry_after_s=exc.retry_after_s or DEFAULT_RETRY_AFTER_S,
                ) from exc
            raise

    def _wait(self, state: RetryCallState) -> float:
        outcome = state.outcome.exception() if state.outcome else None
        jittered: float = wait_random_exponential(multiplier=self._min_wait_s, max=MAX_WAIT_S)(
            state
        )
        asked = outcome.retry_after_s if isinstance(outcome, Refused) else None
        return jittered if asked is None else min(MAX_WAIT_S, asked + jittered / 4)


async def _send_once(send: Send) -> httpx2.Response:
    response = await send()
    if response.is_error:
        raise Refused(response)
    return response
