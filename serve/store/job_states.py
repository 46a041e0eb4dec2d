"""The states a job can be in, as its tenant reads them."""

from serve.store.tables import JobState

ENDED = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, JobState.PARKED})
"""A job in one of these never changes its state again."""


def tell_state(state: JobState) -> str:
    """The word a caller reads: what is parked has failed, and nobody tries it again."""
    return JobState.FAILED.value if state is JobState.PARKED else state.value
