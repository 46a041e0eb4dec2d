"""One HTTP connection to the API: requests go out, refusals come back as `ApiError`."""

from collections.abc import Mapping
from typing import Any, NoReturn
from urllib.parse import quote

import httpx2
from pydantic import BaseModel

from serve.schemas.problems import Problem

TIMEOUT = httpx2.Timeout(120.0, connect=5.0)


class ApiError(Exception):
    """The API refused or failed; carries its problem."""

    def __init__(self, problem: Problem):
        super().__init__(f"{problem.code}: {problem.detail}")
        self.problem = problem


class ApiUnreachable(Exception):
    """Nothing that speaks this API answered at the address."""


class Connection:
    """Sends requests to one API, with one key.

    Args:
        url: without a slash at its end.
    """

    def __init__(
        self, url: str, headers: Mapping[str, str], transport: httpx2.BaseTransport | None
    ):
        self._url = url
        self.http = httpx2.Client(
            base_url=url, headers=dict(headers), timeout=TIMEOUT, transport=transport
        )

    def close(self) -> None:
        self.http.close()

    def send(self, method: str, path: str, **arguments: Any) -> httpx2.Response:
        """
        Raises:
            ApiError: refused or failed, with a code and a remedy.
            ApiUnreachable: nothing answers at the address.
        """
        try:
            response = self.http.request(method, path, **arguments)
        except httpx2.TransportError as exc:
            raise ApiUnreachable(f"{self._url}: {exc or type(exc).__name__}") from exc
        if not response.is_success:
            self.refuse(response)
        return response

    def read(self, path: str, **parameters: Any) -> bytes:
        """What is at a path; parameters that are None are not sent."""
        given = {name: value for name, value in parameters.items() if value is not None}
        return self.send("GET", path, params=given).content

    def write(self, method: str, path: str, body: BaseModel) -> bytes:
        # Only what was said: the rest is for the server to decide.
        content = body.model_dump(mode="json", exclude_unset=True)
        return self.send(method, path, json=content).content

    def refuse(self, response: httpx2.Response) -> NoReturn:
        """Raise what an answer without success means."""
        try:
            raise ApiError(Problem.model_validate_json(response.content))
        except ValueError:
            answered = f"{self._url} answered {response.status_code}, not as this API does"
            raise ApiUnreachable(answered) from None


def part(segment: str) -> str:
    """One segment of a path, whatever it says."""
    return quote(segment, safe="")
