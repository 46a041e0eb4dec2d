"""The command line as a person uses it: what is run, in a process of its own."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serve.cli import app
from serve.client import ApiError, Client
from serve.demo.cases import demo_cases
from serve.settings import free_port
from tests.pictures import encoded, photo

SM4LL = (sys.executable, "-m", "serve.cli")
EYE = next(case for case in demo_cases() if case.expert == "eye")
BENCH_FAMILY = Path(__file__).parent / "bench" / "family.yaml"


def fresh_environ() -> dict[str, str]:
    """Without the flags of this run's own cluster: a person's shell has none of them."""
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_SERVE_")}


def sm4ll(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*SM4LL, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**fresh_environ(), **environ},
    )


COMMANDS = (
    *("up", "down", "tryon", "demo", "prepare", "profile", "plan", "experts", "experts freeze"),
    *("experts list", "experts default", "pins set", "pins list", "pins show", "pins remove"),
    *("bench gateway", "bench experts", "bench adapters", "bench packing", "bench admission"),
    *("bench gpu", "bench assignment", "bench shadow", "bench sequential"),
    *("bench rollouts", "top"),
    "experiments report",
    *("rollouts start", "rollouts list", "rollouts show", "rollouts decisions"),
    *("rollouts pause", "rollouts resume", "rollouts abort", "rollouts approve"),
    *("store upgrade", "store prepare", "store key", "store check", "version"),
    *("tenants list", "tenants create", "tenants policy", "tenants disable", "tenants enable"),
    *("tenants keys list", "tenants keys create", "tenants keys rotate", "tenants keys revoke"),
    *("tenants audit verify", "assets upload", "assets list", "assets delete", "assets erase"),
    *("batches create", "batches list", "batches show", "batches start", "batches follow"),
    *("batches pause", "batches resume", "batches cancel", "batches retry", "batches manifest"),
    *("batches download", "webhooks deliveries", "webhooks redeliver", "webhooks test"),
    *("webhooks secret list", "webhooks secret rotate", "outcomes add", "outcomes import"),
    *("experts deploy", "experts undeploy", "experts served"),
    *("experiments list", "experiments show", "experiments create", "experiments start"),
    *("experiments pause", "experiments resume", "experiments end", "experiments weights"),
    "experiments assign",
    *("k8s apply", "k8s diff", "k8s rollback", "k8s history", "k8s delete"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    answer = CliRunner().invoke(app, [*command.split(), "--help"])
    assert answer.exit_code == 0
    assert len(answer.stdout.splitlines()) > 3


def test_nothing_at_the_address_says_how_to_start_it(tmp_path: Path) -> None:
    answer = sm4ll("experts", "--url", "http://127.0.0.1:1")
    assert answer.returncode == 1
    assert "sm4ll up" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_unknown_file_ending_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    answer = sm4ll(
        *("tryon", "--expert", "eye", "--person", str(EYE.person_path)),
        *("--product", str(EYE.product_path), "-o", str(tmp_path / "out.bmp")),
    )
    assert answer.returncode == 2
    assert ".png" in answer.stderr


def test_missing_family_is_named() -> None:
    answer = sm4ll("up", "--port", "18999", "--family", "nowhere.yaml")
    assert answer.returncode == 1
    assert "nowhere.yaml" in answer.stderr
    assert "Traceback" not in answer.stderr


def test_down_without_up_says_so(tmp_path: Path) -> None:
    answer = sm4ll("down", "--port", "18998", SM4LL_STATE_DIR=str(tmp_path))
    assert answer.returncode == 1


@pytest.mark.ray
def test_tryon_writes_the_picture_and_says_what_it_is(api: Client, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    answer = sm4ll(
        *("tryon", "--expert", "eye", "--person", str(EYE.person_path)),
        *("--product", str(EYE.product_path), "-o", str(out), "--url", api.url),
    )
    assert answer.returncode == 0, answer.stderr
    assert out.read_bytes().startswith(b"\x89PNG")
    assert "outside max diff 0" in answer.stdout
    assert "preview" in answer.stdout


@pytest.mark.ray
def test_refusal_is_said_in_words_with_a_remedy(api: Client, tmp_path: Path) -> None:
    scene = tmp_path / "scene.png"
    scene.write_bytes(encoded(photo()))
    answer = sm4ll(
        *("tryon", "--expert", "eye", "--person", str(scene)),
        *("--product", str(EYE.product_path), "-o", str(tmp_path / "o.png"), "--url", api.url),
    )
    assert answer.returncode == 1
    assert "subject_not_found" in answer.stderr
    assert "What helps" in answer.stderr


@pytest.mark.ray
def test_experts_lists_version_backend_and_licence(api: Client) -> None:
    answer = sm4ll("experts", "--url", api.url, COLUMNS="160")
    assert answer.returncode == 0
    for words in ("eye@1 *", "bg@1 *", "top@noop", "warp, preview", "no weights"):
        assert words in answer.stdout


def children(pid: int) -> set[int]:
    """Every process below one, by /proc."""
    found: set[int] = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            child = int(stat.parent.name)
            found |= {child} | children(child)
    return found


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until_gone(pids: set[int], timeout_s: float) -> set[int]:
    give_up_s = time.monotonic() + timeout_s
    while (left := {pid for pid in pids if is_running(pid)}) and time.monotonic() < give_up_s:
        os.sched_yield()
    return left


@pytest.fixture
def up(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    port = free_port()
    process = subprocess.Popen(
        [*SM4LL, *f"up --port {port} --family {BENCH_FAMILY} --data {tmp_path}".split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=fresh_environ(),
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "curl" in line:
            break
    yield process, f"http://127.0.0.1:{port}", said
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.mark.ray
def test_ctrl_c_stops_everything_that_up_started(
    up: tuple[subprocess.Popen[str], str, str], tmp_path: Path
) -> None:
    process, url, said = up
    assert f"Ready at {url}" in said, said
    assert "deployments run" in said
    key_file = tmp_path / "local.key"
    key = key_file.read_text().strip()
    assert f"Key: sk_...   (in {key_file})" in said
    assert key not in said
    assert key_file.stat().st_mode & 0o777 == 0o600
    with Client(url, key) as client:
        assert client.readiness().ready
        assert client.models().models
    with pytest.raises(ApiError), Client(url) as client:
        client.models()
    (curl,) = [line.strip() for line in said.splitlines() if line.strip().startswith("curl")]
    assert all(Path(path).is_file() for path in re.findall(r"@(\S+)", curl))
    started = children(process.pid)
    assert len(started) > 5
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert wait_until_gone(started, 10) == set()
