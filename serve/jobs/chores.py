"""How often a runner does what."""

from serve.config import JobsConfig
from serve.jobs.routine import Chore
from serve.jobs.runner import Runner

WATCH_S = 0.5
"""A cancellation reaches a running job within a second."""
MAX_TIDY_S = 5.0
BEATS_PER_LEASE = 4


def list_chores(runner: Runner, config: JobsConfig) -> list[Chore]:
    return [
        Chore(name="fill", every_s=config.poll_s, work=runner.fill, pause=runner.wait),
        Chore(name="watch", every_s=WATCH_S, work=runner.watch),
        Chore(name="beat", every_s=config.lease_s / BEATS_PER_LEASE, work=runner.beat),
        Chore(name="tidy", every_s=min(MAX_TIDY_S, config.lease_s / 2), work=runner.tidy),
    ]
