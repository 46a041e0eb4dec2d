"""Jobs on the running cluster: through HTTP, the runner's deployment and the routers' handles."""

import base64
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import pytest

from serve.client import ApiError, Client
from serve.demo.cases import demo_cases
from serve.messages import Expert
from serve.schemas.jobs import JobOptions
from serve.schemas.tryon import TryOnOptions
from tests.pictures import box_mask, encoded, photo
from tests.test_cli import sm4ll

pytestmark = pytest.mark.ray

FILES = (encoded(photo()), encoded(photo(64, 64, seed=1)), encoded(box_mask()))
SLOW = JobOptions(expert="top", version="slow", seed=7)
LONG = JobOptions(expert="top", version="long")


def test_job_is_followed_step_by_step_to_the_synchronous_answers_bytes(api: Client) -> None:
    card = api.submit_job(SLOW, *FILES)
    events = list(api.job_events(card.id))
    kinds = [event.kind for event in events]
    assert kinds[:2] == ["queued", "started"]
    assert kinds[-2:] == ["preview", "finished"]
    steps = [(event.data["i"], event.data["n"]) for event in events if event.kind == "step"]
    assert steps
    assert steps == sorted(steps)
    assert steps[-1] == (4, 4)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    preview = events[-2].data["image"].partition(",")[2]
    assert base64.b64decode(preview)[:2] == b"\xff\xd8"
    done = api.job(card.id)
    assert (done.status, done.attempts) == ("succeeded", 1)
    direct = api.tryon(TryOnOptions(expert="top", version="slow", seed=7), *FILES)
    assert api.download(done.outputs[0].url) == direct.pictures[0].data


def test_stream_is_taken_up_by_number(api: Client) -> None:
    card = api.submit_job(SLOW, *FILES)
    everything = list(api.job_events(card.id))
    assert list(api.job_events(card.id, after=2)) == everything[2:]
    assert list(api.job_events(card.id, after=everything[-1].id)) == []


def test_cancel_frees_the_expert_within_a_step(api: Client) -> None:
    first = api.submit_job(LONG, *FILES)
    for event in api.job_events(first.id):
        if event.kind == "step":
            break
    # One replica, one device: this one's first step comes when the first job's last has gone.
    second = api.submit_job(LONG, *FILES)
    api.cancel_job(first.id)
    (*_, finished) = api.job_events(first.id)
    assert finished.data["status"] == "cancelled"
    steps = (event for event in api.job_events(second.id) if event.kind == "step")
    waited = datetime.fromisoformat(next(steps).data["at"]) - datetime.fromisoformat(
        finished.data["at"]
    )
    assert waited.total_seconds() < 10, "30 s, where nothing was stopped"
    api.cancel_job(second.id)
    (*_, ended) = api.job_events(second.id)
    assert ended.data["status"] == "cancelled"
    with pytest.raises(ApiError) as caught:
        api.cancel_job(api_done(api))
    assert caught.value.problem.code == "conflict"


def api_done(api: Client) -> str:
    card = api.submit_job(JobOptions(expert="top", version="noop"), *FILES)
    list(api.job_events(card.id))
    return card.id


def test_forty_jobs_at_once_all_succeed(api: Client) -> None:
    def one(seed: int) -> str:
        options = JobOptions(expert="top", version="noop", seed=seed)
        card = api.submit_job(options, *FILES)
        list(api.job_events(card.id))
        return api.job(card.id).status

    with ThreadPoolExecutor(10) as callers:
        assert set(callers.map(one, range(40))) == {"succeeded"}


@pytest.mark.parametrize("expert", ["dress", "eye"])
def test_job_of_an_expert_is_what_the_synchronous_call_answers(
    api: Client, expert: Expert, tmp_path: Path
) -> None:
    """Dress: a crop that is too large for gRPC, streamed by reference. Fetched by `sm4ll jobs`."""
    case = next(case for case in demo_cases() if case.expert == expert)
    files = (case.person_path.read_bytes(), case.product_path.read_bytes())
    card = api.submit_job(JobOptions(expert=expert, format="png"), *files)
    key = api.headers["Authorization"].removeprefix("Bearer ")
    answer = sm4ll(
        "jobs", "follow", card.id, "-o", str(tmp_path), "--url", api.url, SM4LL_API_KEY=key
    )
    assert answer.returncode == 0, answer.stderr
    (file,) = tmp_path.iterdir()
    direct = api.tryon(TryOnOptions(expert=expert, format="png"), *files)
    assert file.read_bytes() == direct.pictures[0].data
