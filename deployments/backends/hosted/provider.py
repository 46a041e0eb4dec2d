"""What a third-party API has to say for itself; `backend.py` does the rest."""

from dataclasses import dataclass
from typing import Protocol

import httpx2

from serve.messages import ExpertRequest, UInt8Array, UpstreamCost


@dataclass(frozen=True, slots=True)
class Painted:
    """What an API answered for one request."""

    images: tuple[UInt8Array, ...]
    """Each (H, W, 3), the crop's own size."""
    cost: UpstreamCost
    notes: tuple[str, ...] = ()


class Provider(Protocol):
    """Speaks one API."""

    name: str

    def headers(self) -> dict[str, str]:
        """What every call carries, the key among it."""

    async def paint(self, http: httpx2.AsyncClient, request: ExpertRequest) -> Painted:
        """Paint every picture of one request; cancelled like any task.

        Raises:
            RequestError: the API refuses these pictures for a reason the caller can change.
            Overloaded: it has no room, after retries.
            UpstreamFailed: anything else that went wrong there.
        """
