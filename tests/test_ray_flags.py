"""Ray's flags are ones that Ray knows, and a client cannot set what they guard."""

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any

import httpx2
import pytest
import ray
import ray._common.usage.usage_constants as usage_constants
import ray.serve._private.constants as serve_constants
from ray.serve._private.http_util import validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path

from serve.config import JobsConfig, RouterConfig
from serve.control_headers import NoControlHeaders, is_control_header
from serve.ray_flags import HARD_STOP_AFTER_S, RAY_FLAGS, RayFlag, flags_for
from tests.up import Up

KNOWN = inspect.getsource(serve_constants) + inspect.getsource(usage_constants)
CONTROLS = {
    "x-request-timeout-seconds": "0.001",
    "X-Request-Disconnect-Disabled": "?1",
    "serve_multiplexed_model_id": "theirs",
    "Serve-Multiplexed-Model-Id": "theirs",
    "x-session-id": "theirs",
    "x_session_id": "theirs",
    "x-serve-router-replica": "theirs",
}


@pytest.mark.parametrize("flag", RAY_FLAGS, ids=lambda flag: flag.name)
def test_flag_is_one_that_ray_reads_and_says_why(flag: RayFlag) -> None:
    if flag.name.startswith("RAY_SERVE_") or flag.name.isupper():
        assert f'"{flag.name}"' in KNOWN
    else:  # of Ray's core, by the name of its setting
        assert getattr(ray._config, flag.name.removeprefix("RAY_"))() > 0
    assert flag.readers
    assert len(flag.reason) > 10


def test_haproxy_carries_what_is_under_way_longer_than_anything_takes() -> None:
    longest_s = max(RouterConfig().default_timeout_s, JobsConfig().run_timeout_s)
    assert longest_s < HARD_STOP_AFTER_S
    assert flags_for("anywhere")["RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S"] == str(HARD_STOP_AFTER_S)


def test_laptop_adds_to_what_every_cluster_has() -> None:
    assert flags_for("anywhere").items() < flags_for("laptop").items()
    assert len({flag.name for flag in RAY_FLAGS}) == len(RAY_FLAGS)


def test_serve_finds_what_takes_its_headers_off() -> None:
    path = flags_for("anywhere")["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]
    middleware, _ = validate_http_proxy_callback_return(call_function_from_import_path(path))
    assert middleware.cls is NoControlHeaders


def test_control_headers_are_taken_off_and_no_others() -> None:
    seen: list[Mapping[str, Any]] = []

    async def serve_app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    kept = [(b"x-request-id", b"req_1"), (b"authorization", b"Bearer sk_1"), (b"x-session", b"s")]
    controls = [(name.lower().encode(), value.encode()) for name, value in CONTROLS.items()]
    scope = {"type": "http", "headers": [*controls, *kept]}
    asyncio.run(NoControlHeaders(serve_app)(scope, None, None))  # type: ignore[arg-type]
    asyncio.run(NoControlHeaders(serve_app)({"type": "lifespan"}, None, None))  # type: ignore[arg-type]
    assert seen == [{"type": "http", "headers": kept}, {"type": "lifespan"}]
    assert all(is_control_header(name) for name, _ in controls)


@pytest.mark.ray
def test_client_cannot_set_the_timeout_of_a_running_cluster(up: Up) -> None:
    """Serve answers 408 to whoever gives it a millisecond; ours answers as without."""
    headers = {"Authorization": f"Bearer {up.key}", **CONTROLS}
    for _ in range(5):
        answer = httpx2.get(f"{up.url}/v1/models", headers=headers)
        assert answer.status_code == 200, answer.text
