"""Attempts at jobs and deliveries of webhooks are counted by how they end."""

import pytest

from serve.errors import GenerationFailed, InvalidImage, Overloaded, Sm4llError
from serve.fetching.post import Reply
from serve.jobs.deliveries import GONE, DeliveryPolicy
from serve.jobs.run import JobOutcome, JobRun
from serve.store.engine import Database
from tests.test_job_runner import OUTCOME, Shop, run_once
from tests.test_webhooks import Desk, Receivers, desk

__all__ = ["desk"]
pytestmark = pytest.mark.anyio


async def test_attempts_are_counted_by_what_becomes_of_the_job(database: Database) -> None:
    shop = Shop(database)
    fates: dict[str, Sm4llError | JobOutcome] = {}
    ends = (
        OUTCOME,
        InvalidImage("no picture"),
        Overloaded("full", retry_after_s=1.0),
        GenerationFailed("broken"),
    )
    for end in ends:
        (job_id,) = await shop.accept()
        fates[job_id] = end

    def answer(run: JobRun) -> JobOutcome | Exception:
        return fates[run.job_id]

    shop.routers.answer = answer
    runner = shop.runner()
    await run_once(runner)
    told = {
        outcome: shop.meter.total("sm4ll_job_attempts_total", outcome=outcome)
        for outcome in ("succeeded", "failed", "postponed", "retried")
    }
    assert told == dict.fromkeys(told, 1.0)
    shop.routers.is_holding = True
    await shop.accept()
    assert await runner.fill() == 1
    await runner.stop()
    assert shop.meter.total("sm4ll_job_attempts_total", outcome="stopping") == 1


async def test_deliveries_are_counted_by_whether_they_arrive(desk: Desk) -> None:
    for _ in range(3):
        await desk.put()
    post = Receivers(Reply(200, None), Reply(500, None), Reply(GONE, None))
    policy = DeliveryPolicy(delays_s=(5,), concurrency=1)
    await desk.deliverer(post, policy).run_once()
    desk.clock.advance(6)
    post = Receivers(Reply(500, None))
    await desk.deliverer(post, policy).run_once()
    total = desk.meter.total
    assert total("sm4ll_webhooks_total", outcome="delivered") == 1
    assert total("sm4ll_webhooks_total", outcome="put_off") == 1
    assert total("sm4ll_webhooks_total", outcome="given_up") == 2
