"""A bare two-hop Ray Serve echo: ingress replica, expert replica, and back.

Ray reads its flags from the environment that this process is started with.
"""

import signal
import sys
import threading

import ray
from ray import serve as rayserve
from starlette.requests import Request
from starlette.responses import Response

BY_REFERENCE_BYTES = 1_500_000
OPTIONS = {"max_ongoing_requests": 256, "ray_actor_options": {"num_cpus": 0.1}}


class EchoExpert:
    """The second hop: gives the bytes back."""

    async def echo(self, body: bytes) -> bytes:
        return body


class EchoIngress:
    """The first hop: reads the body, passes it on, answers with what comes back."""

    def __init__(self, expert: rayserve.handle.DeploymentHandle, is_grpc: bool):
        self._expert = expert
        self._is_grpc = is_grpc

    async def __call__(self, request: Request) -> Response:
        body = await request.body()
        expert = self._expert
        if self._is_grpc:
            # The faster transport for each size, as a careful author would choose.
            expert = expert.options(_by_reference=len(body) > BY_REFERENCE_BYTES)
        return Response(await expert.echo.remote(body), media_type="image/jpeg")


def main() -> None:
    port, is_grpc = int(sys.argv[1]), sys.argv[2] == "flagged"
    ended = threading.Event()
    signal.signal(signal.SIGINT, lambda *_: ended.set())
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=2**30,
    )
    try:
        rayserve.start(http_options={"host": "127.0.0.1", "port": port})
        expert = rayserve.deployment(EchoExpert).options(**OPTIONS).bind()
        ingress = rayserve.deployment(EchoIngress).options(**OPTIONS).bind(expert, is_grpc)
        rayserve.run(ingress, name="echo", route_prefix="/echo")
        ended.wait()
    finally:
        rayserve.shutdown()
        ray.shutdown()


if __name__ == "__main__":
    main()
