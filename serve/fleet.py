"""How many replicas run, as Serve's controller says; asked by the routers, for their permits."""

import asyncio
import time
from collections.abc import Callable

from ray import serve as rayserve
from ray.exceptions import RayError
from ray.serve.exceptions import RayServeException

from serve.permits import Fleet

INTERVAL_S = 2.0
TIMEOUT_S = 2.0


class FleetWatch:
    """Asks at most once in an interval, and never fails: what is not known now is known later."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic):
        self._clock_s = clock_s
        self._next_s = 0.0

    async def read(self) -> Fleet | None:
        """From inside a router's replica; None when it was asked just now, or nobody answered."""
        if self._clock_s() < self._next_s:
            return None
        self._next_s = self._clock_s() + INTERVAL_S
        context = rayserve.get_replica_context()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                status = await asyncio.to_thread(rayserve.status)
        except (RayError, RayServeException, TimeoutError):
            return None
        app = status.applications.get(context.app_name)
        if app is None:
            return None
        running = {
            name: deployment.replica_states.get("RUNNING", 0)
            for name, deployment in app.deployments.items()
        }
        return Fleet(running.get(context.deployment, 1), running)
