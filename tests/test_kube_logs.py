"""`sm4ll k8s logs` finds the lines of an expert in the logs of many pods, and replicas put them
there."""

import fcntl
import itertools
import json
import logging
import logging.handlers
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from k8s.control.api import ControlPlane
from k8s.state.findings import name_of
from k8s.state.following import Follower
from k8s.state.pod_logs import Wanted, merge_lines, read_line, short_name
from serve.cli import app
from serve.observing.container_log import ContainerLog
from serve.observing.logs import SERVE_LOGGER, write_json_logs
from serve.settings import Settings
from tests.kube_server import Fault, KubeServer, open_kube
from tests.kube_worlds import ACTIVE, PENDING, fill, healthy, pod

Manifest = dict[str, Any]
ROUTER, LIGHT = f"{ACTIVE}-router-worker-0", f"{ACTIVE}-light-gpu-l4-worker-0"


def line(second: int, message: str, **fields: Any) -> str:
    time = f"2026-11-26T03:00:{second:02d}.000Z"
    return json.dumps({"time": time, "level": "INFO", "message": message, **fields})


@pytest.fixture
def kube() -> Iterator[KubeServer]:
    with open_kube(namespaces=("default", "sm4ll", "kuberay-system")) as server:
        fill(server, healthy())
        for one in healthy():
            if one["kind"] == "Pod":
                server.logs[name_of(one)] = ""
        server.logs[ROUTER] = "\n".join(
            (
                "INFO scripts.py -- Ray runtime started.",
                line(1, "POST /v1/tryon 200", deployment="sm4ll_Router", version="eye@1", ms=412.3),
                line(
                    3, "POST /v1/tryon 500", deployment="sm4ll_Router", version="top@1", status=500
                ),
            )
        )
        failed = {"type": "BundleInvalid", "message": "m", "stack": ["Traceback", "BundleInvalid"]}
        server.logs[LIGHT] = line(
            2, "differs", deployment="sm4ll_Expert-eye@1", level="ERROR", exception=failed
        )
        yield server


def run(kube: KubeServer, folder: Path, *words: str) -> Result:
    env = {"SM4LL_KUBECONFIG": str(kube.kubeconfig(folder)), "COLUMNS": "200"}
    return CliRunner().invoke(app, ["k8s", "logs", *words], env=env)


def test_lines_of_all_pods_come_by_time_and_text_stays_where_it_was(
    kube: KubeServer, tmp_path: Path
) -> None:
    shown = run(kube, tmp_path)
    assert shown.output.splitlines() == [
        "router-worker-0 INFO scripts.py -- Ray runtime started.",
        "router-worker-0 03:00:01.000 Router: POST /v1/tryon 200  version=eye@1  ms=412.3",
        "light-gpu-l4-worker-0 03:00:02.000 ERROR eye@1: differs",
        "light-gpu-l4-worker-0   Traceback",
        "light-gpu-l4-worker-0   BundleInvalid",
        "router-worker-0 03:00:03.000 Router: POST /v1/tryon 500  version=top@1  status=500",
    ]


def test_an_experts_lines_are_its_replicas_and_its_requests(
    kube: KubeServer, tmp_path: Path
) -> None:
    shown = run(kube, tmp_path, "--expert", "eye@1", "--raw")
    assert len(shown.output.splitlines()) == 2
    assert "top@1" not in shown.output
    assert '"deployment": "sm4ll_Expert-eye@1"' in shown.output
    of_pool = run(kube, tmp_path, "--pool", "router", "--grep", '"status": 5')
    assert len(of_pool.output.splitlines()) == 1


def test_where_nothing_is_found_it_says_what_cannot_be_had(
    kube: KubeServer, tmp_path: Path
) -> None:
    shown = run(kube, tmp_path, "--expert", "shoes@1")
    assert "No such line in the logs of 5 pods." in shown.output
    assert "SM4LL_LOG_PIPE" in shown.output
    assert "/tmp/ray/session_latest/logs/serve" in shown.output
    nowhere = run(kube, tmp_path, "--pool", "attic")
    assert nowhere.exit_code == 1
    assert "no pod has such lines" in str(nowhere.exception)
    assert run(kube, tmp_path, "--grep", "(").exit_code == 2


def test_a_container_that_has_not_started_costs_its_lines_only(
    kube: KubeServer, tmp_path: Path
) -> None:
    kube.fail("GET", f"{LIGHT}/log", Fault(400, "container is waiting to start"))
    shown = run(kube, tmp_path)
    assert f"{LIGHT}: has no log" in shown.output
    assert "POST /v1/tryon 500" in shown.output


def test_the_operator_is_looked_for_in_every_namespace(kube: KubeServer, tmp_path: Path) -> None:
    assert "runs nowhere" in str(run(kube, tmp_path, "--operator").exception)
    kube.put(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "kuberay-operator-x",
                "namespace": "kuberay-system",
                "labels": {"app.kubernetes.io/name": "kuberay-operator"},
            },
            "spec": {"containers": [{"name": "operator"}]},
        }
    )
    kube.logs["kuberay-operator-x"] = "reconciling"
    assert "kuberay-operator-x reconciling" in run(kube, tmp_path, "--operator").output
    kube.fail("GET", "/api/v1/pods", Fault(403, "pods is forbidden"))
    refused = run(kube, tmp_path, "--operator")
    assert "may not look into" in str(refused.exception)


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        (Wanted(), ["h", "r", "p"]),
        (Wanted(head=True), ["h"]),
        (Wanted(pool="router"), ["r", "p"]),
        (Wanted(pod="j"), ["j"]),
        (Wanted(job="migrate"), ["j"]),
        (Wanted(job="sweep"), ["s"]),
    ],
)
def test_pods_are_chosen_by_what_they_are(wanted: Wanted, names: list[str]) -> None:
    pods = [pod("h", "head"), pod("r"), pod("p", cluster=PENDING), pod("j"), pod("s")]
    pods[3]["metadata"]["labels"] = {"job-name": "sm4ll-migrate"}
    pods[4]["metadata"]["labels"] = {"batch.kubernetes.io/job-name": "sm4ll-sweep-2930"}
    assert [name_of(one) for one in pods if wanted.takes_pod(one)] == names


def test_two_clusters_are_told_apart_in_front_of_each_line() -> None:
    one = pod(f"{PENDING}-router-worker-0", cluster=PENDING)
    assert short_name(one, several_clusters=False) == "router-worker-0"
    assert short_name(one, several_clusters=True) == "9wzlm router-worker-0"


def test_a_line_that_only_looks_like_ours_is_text() -> None:
    assert read_line("{broken").text == "{broken"
    assert read_line('{"no": "message"}').text == '{"no": "message"}'
    assert [text for _, text in merge_lines([("a", ["x", "y"]), ("b", ["z"])])] == ["x", "y", "z"]


def test_following_joins_pods_that_come(kube: KubeServer, tmp_path: Path) -> None:
    def open_api() -> ControlPlane:
        plane = ControlPlane.configured(Settings(SM4LL_KUBECONFIG=str(kube.kubeconfig(tmp_path))))
        plane.sleep = lambda seconds: None
        return plane

    there = tuple(one for one in healthy() if one["kind"] == "Pod" and name_of(one) == ROUTER)
    wanted = Wanted(pool="router", pattern=re.compile("POST|hello"))
    follower = Follower(open_api, "sm4ll", wanted, since_s=60)
    lines = follower.lines(there)
    first = list(itertools.islice(lines, 2))
    assert {name_of(one) for one, _ in first} == {ROUTER}
    kube.logs["late"] = "hello"
    kube.logs[ROUTER] = ""
    kube.put(pod("late"))
    assert next(name_of(one) for one, _ in lines if name_of(one) == "late") == "late"
    asked = [one.query for one in kube.asked if one.path.endswith(f"{ROUTER}/log")]
    assert asked[0]["follow"] == "true"
    assert asked[0]["sinceSeconds"] == "60"


def test_following_ends_with_words_where_logs_may_not_be_read(
    kube: KubeServer, tmp_path: Path
) -> None:
    kube.fail("GET", f"{ROUTER}/log", Fault(403, "pods/log is forbidden"))
    shown = run(kube, tmp_path, "--pod", ROUTER, "-f")
    assert shown.exit_code == 1
    assert "pods/log is forbidden" in str(shown.exception)


@pytest.fixture
def pipe() -> Iterator[tuple[int, Path]]:
    """A pipe as a container's first process has it, to be opened through /proc."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, Path(f"/proc/self/fd/{writer}")
    os.close(reader)
    os.close(writer)


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("serve.x", logging.INFO, "f.py", 1, message, None, None)


def test_a_replicas_line_reaches_the_containers_log(
    pipe: tuple[int, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, path = pipe
    monkeypatch.setenv("SM4LL_LOG_PIPE", str(path))
    logger = logging.getLogger(SERVE_LOGGER)
    touched = [
        logging.getLogger(name) for name in ("", "ray", "serve", "deployments", SERVE_LOGGER)
    ]
    before = [(one, one.handlers, one.propagate, one.level) for one in touched]
    logger.handlers = [logging.handlers.MemoryHandler(1)]
    try:
        write_json_logs()
        write_json_logs()
        logging.getLogger("serve.x").info("painted", extra={"deployment": "Expert-eye@1"})
        written = os.read(reader, 10_000).decode().splitlines()
    finally:
        for one, handlers, propagate, level in before:
            one.handlers, one.propagate = handlers, propagate
            one.setLevel(level)
        logging.captureWarnings(False)
    told = [json.loads(text) for text in written]
    assert [(one["message"], one["deployment"]) for one in told] == [("painted", "Expert-eye@1")]


def test_a_full_pipe_costs_lines_and_no_time(pipe: tuple[int, Path]) -> None:
    reader, path = pipe
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    log = ContainerLog(path)
    log.setFormatter(logging.Formatter("%(message)s"))
    for _ in range(3):
        log.handle(record("x" * 1500))
    assert len(os.read(reader, 10_000).splitlines()) == 2, "the third had no room"
    log.handle(record("after"))
    assert os.read(reader, 10_000) == b"after\n"
    log.close()


def test_a_line_that_was_torn_does_not_spoil_the_next(pipe: tuple[int, Path]) -> None:
    reader, path = pipe
    fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, 4096)
    log = ContainerLog(path)
    log.setFormatter(logging.Formatter("%(message)s"))
    log.handle(record("x" * 5000))
    assert os.read(reader, 10_000) == b"x" * 4096
    log.handle(record("whole"))
    assert os.read(reader, 10_000) == b"\nwhole\n"
    log.close()


def test_a_pipe_that_is_not_there_costs_a_warning() -> None:
    with pytest.raises(OSError, match="No such file"):
        ContainerLog(Path("/proc/self/fd/99999"))
