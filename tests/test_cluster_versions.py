"""A version comes to a running cluster and goes again, and nobody else notices."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from serve.client import ApiError, Client
from serve.schemas.tryon import TryOnOptions
from tests.pictures import box_mask, encoded, photo
from tests.test_cli import sm4ll
from tests.up import EXPERT, Up

pytestmark = pytest.mark.ray

FILES = (encoded(photo()), encoded(photo(64, 64, seed=1)), encoded(box_mask()))
OLD = TryOnOptions(expert="top", version="noop", seed=1, format="png")
NEW = TryOnOptions(expert="top", version="second", seed=1, format="png")


@contextmanager
def traffic(up: Up, num_callers: int = 2) -> Iterator[list[str]]:
    """The family's own version is asked all the time; answers which version each request got."""
    over, answers = threading.Event(), list[str]()

    def call() -> None:
        with Client(up.url, up.key) as client:
            while not over.is_set():
                answers.append(client.tryon(OLD, *FILES).receipt.version)

    with ThreadPoolExecutor(num_callers) as pool:
        calls = [pool.submit(call) for _ in range(num_callers)]
        try:
            yield answers
        finally:
            over.set()
        for one in calls:
            one.result()  # raises what a request was refused with


def list_replicas(up: Up) -> set[int]:
    """Processes of the family's own deployments."""
    children = psutil.Process(up.process.pid).children(recursive=True)
    return {child.pid for child in children if is_of_the_family(child)}


def is_of_the_family(process: psutil.Process) -> bool:
    try:
        # Ray names a worker's process after its actor: `ray::ServeReplica:sm4ll:Router`.
        name = " ".join(process.cmdline())
    except psutil.Error:
        return False
    names = ("Router", "JobRunner", "Segmenter-classical", "Expert-top@noop")
    return name.startswith("ray::") and any(one in name for one in names)


def test_version_is_added_and_taken_away_while_others_are_served(up: Up, tmp_path: Path) -> None:
    bundle = tmp_path / "top.second.yaml"
    bundle.write_text(EXPERT.replace("name: noop\n", "name: second\n", 1))
    settings = {"SM4LL_URL": up.url, "SM4LL_API_KEY": up.key}
    before = list_replicas(up)
    assert len(before) == 6, "two routers, two experts, a segmenter, a job runner"
    with Client(up.url, up.key) as client, traffic(up) as answers:
        family = {model.version: model.state for model in client.models().models}
        assert "top@noop" in family
        with pytest.raises(ApiError, match="no version"):
            client.tryon(NEW, *FILES)
        deployed = sm4ll("experts", "deploy", "top@second", "--bundle", str(bundle), **settings)
        assert deployed.returncode == 0, deployed.stderr
        assert "top@second: ready" in deployed.stdout
        for _ in range(6):  # both routers
            assert client.tryon(NEW, *FILES).receipt.version == "top@second"
        states = {model.version: model.state for model in client.models().models}
        assert states == family | {"top@second": "ready"}
        assert [card.state for card in client.versions.list()] == ["ready"]
        with Client(up.url, up.open_tenant("passer-by", ("tryon",))) as other:
            unnamed = TryOnOptions(expert="top", format="png")
            assert other.tryon(unnamed, *FILES).receipt.version == "top@noop"
        gone = sm4ll("experts", "undeploy", "top@second", **settings)
        assert gone.returncode == 0, gone.stderr
        with pytest.raises(ApiError, match="no version"):
            client.tryon(NEW, *FILES)
        assert {model.version for model in client.models().models} == family.keys()
    assert set(answers) == {"top@noop"}
    assert len(answers) > 50
    assert list_replicas(up) == before, "nothing was started again"
