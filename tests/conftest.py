import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from serve.client import Client
from serve.settings import CONFIGS_DIR, export_ray_flags, free_port
from tests.hub_server import hub  # noqa: F401
from tests.postgres import postgres  # noqa: F401
from tests.redis_server import redis_server  # noqa: F401
from tests.stores import (  # noqa: F401
    anyio_backend,
    database,
    empty_url,
    postgres_url,
    sqlite_template,
    store_url,
)
from tests.up import up  # noqa: F401

# Ray reads its flags when it is imported, which the tests below this file do.
export_ray_flags()

if "PYTEST_XDIST_WORKER" in os.environ:
    # Torch's threads spin while they wait, and two processes' take the same cores from each other:
    # tiny models took ten times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

NOOP = """
licence: {name: none, commercial_use: true}
title: changes nothing
status: benchmark
backend: {kind: noop}
"""


# Takes real time, and gets its second and third replica within seconds of work for them.
SLOW = NOOP.replace("{kind: noop}", "{kind: noop, seconds: 0.4, steps: 4}")
SLOW_LINES = """  - version: top@slow
    autoscaling: {max_replicas: 3, target_drain_s: 1.5, upscale_delay_s: 0, downscale_delay_s: 3}
"""


# Long enough that who waits behind a stopped request knows that it was stopped.
LONG = NOOP.replace("{kind: noop}", "{kind: noop, seconds: 30, steps: 300}")
LONG_LINES = "  - version: top@long\n    autoscaling: {max_replicas: 1}\n"


@pytest.fixture(scope="session")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped family plus three no-op versions of `top`, and seven LoRAs on one tiny base."""
    folder = tmp_path_factory.mktemp("configs")
    shutil.copytree(CONFIGS_DIR / "experts", folder / "experts")
    (folder / "experts/top.noop.yaml").write_text(f"expert: top\nname: noop\n{NOOP}")
    (folder / "experts/top.slow.yaml").write_text(f"expert: top\nname: slow\n{SLOW}")
    (folder / "experts/top.long.yaml").write_text(f"expert: top\nname: long\n{LONG}")
    # Imported here: the tests that need no weights start without torch.
    from tests.tiny.family import (
        SHARED_BASE,
        lora_lines,
        write_lora_experts,
        write_parsed_expert,
    )

    write_lora_experts(folder)
    write_parsed_expert(folder)
    lines = (CONFIGS_DIR / "family.yaml").read_text() + "  - version: top@noop\n" + SLOW_LINES
    lines += LONG_LINES
    (folder / "family.yaml").write_text(SHARED_BASE + lines + lora_lines())
    return folder / "family.yaml"


@pytest.fixture(scope="session")
def api(family: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """The whole family on the one local Ray cluster of this run, over real HTTP."""
    from serve.local import LocalCluster, LocalOptions

    options = LocalOptions(
        family=family,
        port=free_port(),
        num_cpus=16,
        data_dir=tmp_path_factory.mktemp("data"),
    )
    cluster = LocalCluster(options)
    try:
        cluster.start(lambda deployments: None, threading.Event())
        with Client(cluster.url, cluster.api_key) as client:
            yield client
    finally:
        cluster.stop()


@pytest.fixture(scope="session")
def samples() -> Path:
    """Real person/product pairs that lie beside a checkout, where somebody put them."""
    folder = Path(__file__).parents[2] / "shared" / "samples"
    if not folder.is_dir():
        pytest.skip("no sample pictures beside this checkout (../shared/samples)")
    return folder


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that need no cluster first: they say sooner what is wrong."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)
