"""An expert that is followed step by step: what is told, and that leaving stops it."""

import asyncio
import contextlib

import pytest

from deployments.expert import ExpertReplica
from deployments.recipes import NoopConfig
from serve.errors import DeadlineExceeded
from serve.messages import ExpertReply
from tests.scripted import make_request
from tests.test_expert import BUNDLE, PLAN, stepping_replica


def test_steps_come_before_the_reply_and_the_last_one_always() -> None:
    config = NoopConfig(seconds=0.6, steps=300)
    replica = ExpertReplica((BUNDLE.model_copy(update={"backend": config}),), PLAN)

    async def follow() -> list[tuple[int, int] | ExpertReply]:
        return [told async for told in replica.generate_steps(make_request(num_images=2))]

    *steps, reply = asyncio.run(follow())
    assert isinstance(reply, ExpertReply)
    assert reply.images_nhwc.shape[0] == 2
    assert steps == sorted(steps)  # type: ignore[type-var]
    assert steps[-1] == (300, 300)
    assert 2 <= len(steps) <= 8


def test_who_stops_listening_stops_the_pass() -> None:
    replica, backend = stepping_replica()

    async def listen_once() -> None:
        async with contextlib.aclosing(replica.generate_steps(make_request())) as told:
            async for _ in told:
                break
        while replica._batcher.num_members:
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(listen_once(), 20))
    num_steps = backend.num_steps_done
    assert num_steps > 0
    # The device is free: the next request gets its first step.
    backend.error = ZeroDivisionError()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        asyncio.run(replica.generate(make_request()))
    assert backend.num_steps_done <= num_steps + 1


def test_deadline_ends_the_stream() -> None:
    replica, _ = stepping_replica()

    async def follow() -> None:
        async for _ in replica.generate_steps(make_request(deadline_unix_s=0.0)):
            pass

    with pytest.raises(DeadlineExceeded):
        asyncio.run(follow())
