"""A private Prometheus from Debian's binary, which scrapes every three seconds what it is told."""

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import yaml

from serve.settings import free_port

START_TIMEOUT_S = 30.0


@contextmanager
def started_prometheus(metrics_url: str, rules: Sequence[Path]) -> Iterator[str]:
    """Its URL until the block ends; skips where there is no binary.

    Args:
        metrics_url: what is scraped.
        rules: files of rules, evaluated every second.
    """
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.skip("no Prometheus on this machine (apt-get install prometheus)")
    target = urlsplit(metrics_url)
    config = {
        # After all the other tests the page of that cluster has some megabytes.
        "global": {"scrape_interval": "3s", "scrape_timeout": "3s", "evaluation_interval": "1s"},
        "rule_files": [str(path.absolute()) for path in rules],
        "scrape_configs": [
            {
                "job_name": "ray",
                "metrics_path": target.path or "/metrics",
                "static_configs": [{"targets": [target.netloc]}],
            }
        ],
    }
    with tempfile.TemporaryDirectory(prefix="sm4ll-prometheus-") as folder:
        home = Path(folder)
        (home / "prometheus.yaml").write_text(yaml.safe_dump(config))
        url = f"http://127.0.0.1:{free_port()}"
        command = [
            binary,
            f"--config.file={home / 'prometheus.yaml'}",
            f"--storage.tsdb.path={home / 'data'}",
            f"--web.listen-address={url.removeprefix('http://')}",
        ]
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait_until_ready(url, process, home / "log")
            yield url
        finally:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    give_up_s = time.monotonic() + START_TIMEOUT_S
    while True:
        try:
            if httpx2.get(f"{url}/-/ready").is_success:
                return
        except httpx2.TransportError:
            pass
        if process.poll() is not None or time.monotonic() > give_up_s:
            pytest.fail(f"Prometheus does not start: {log.read_text()[-2000:]}")
        time.sleep(0.05)
