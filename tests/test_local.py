"""What a person reads when the family does not start."""

import threading
import traceback
from pathlib import Path

import pytest

from serve.errors import BundleInvalid, ConfigError
from serve.local import LocalCluster, LocalOptions
from serve.served import shorten_traceback
from serve.settings import CONFIGS_DIR, Settings, forget_metrics, free_port, metrics_file


def test_failed_start_says_what_was_raised_and_what_helps() -> None:
    try:
        error = BundleInvalid("eye@2 does not reproduce its golden sample")
        error.add_note("What helps: sm4ll experts freeze eye@2")
        raise error
    except BundleInvalid:
        text = f"The deployment failed to start 3 times.\n{traceback.format_exc()}"
    assert shorten_traceback(text) == (
        "serve.errors.BundleInvalid: eye@2 does not reproduce its golden sample\n"
        "What helps: sm4ll experts freeze eye@2"
    )


def test_text_without_a_traceback_stays_as_it_is() -> None:
    assert shorten_traceback("no GPU\n  in the cluster") == "no GPU\n  in the cluster"


def test_address_of_metrics_is_taken_back_by_whoever_wrote_it(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    file = metrics_file(settings)
    file.write_text("http://127.0.0.1:2/metrics\n")
    forget_metrics(settings, "http://127.0.0.1:1/metrics")
    assert file.exists()  # another cluster has started on that data since
    forget_metrics(settings, "http://127.0.0.1:2/metrics")
    assert not file.exists()
    forget_metrics(settings, "http://127.0.0.1:2/metrics")


def test_mistake_in_the_files_is_told_before_ray_starts(tmp_path: Path) -> None:
    shipped = (CONFIGS_DIR / "family.yaml").read_text()
    (tmp_path / "experts").symlink_to(CONFIGS_DIR / "experts")
    family = tmp_path / "family.yaml"
    family.write_text(shipped + "\njudge: {models: gone.yaml}\n")
    cluster = LocalCluster(LocalOptions(family=family, port=free_port(), data_dir=tmp_path))
    with pytest.raises(ConfigError, match="gone.yaml"):
        cluster.start(lambda _: None, threading.Event())
    assert not cluster.is_running
    assert not list(tmp_path.glob("*.db"))
