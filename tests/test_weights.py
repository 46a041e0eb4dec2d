"""Weights come from where the bundle says, as safetensors, or are refused by name."""

import hashlib
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from deployments.sources import ModelSource
from deployments.weights import PICKLES, WeightStore, digest_weights
from serve.config import WeightsConfig
from serve.errors import BundleInvalid
from serve.settings import free_port
from tests.hub_server import FILES, REVISION, Hub, use_hub

SOURCE = ModelSource(repo="owner/name", revision=REVISION)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def store(home: Path, **config: object) -> WeightStore:
    return WeightStore(home, WeightsConfig.model_validate(config))


def test_path_is_relative_to_the_bundle(tmp_path: Path) -> None:
    folder = write(tmp_path / "models/base", {"unet/model.safetensors": b"x"})
    home = tmp_path / "experts"
    assert store(home).locate(ModelSource(path=Path("../models/base"))) == str(folder)


def test_subfolder_is_entered_unless_the_root_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path / "repo", {"models/ip.safetensors": b"x"})
    source = ModelSource(path=Path("repo"), subfolder="models")
    assert store(tmp_path).locate(source) == str(tmp_path / "repo/models")
    assert store(tmp_path).locate_root(source) == str(tmp_path / "repo")


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(BundleInvalid, match=f"{tmp_path}/nowhere: no such directory") as caught:
        store(tmp_path).locate(ModelSource(path=Path("nowhere")))
    assert "relative" in caught.value.remedy


@pytest.mark.parametrize("suffix", PICKLES)
def test_pickle_without_safetensors_beside_it_is_refused_by_name(
    tmp_path: Path, suffix: str
) -> None:
    files = {"unet/model.safetensors": b"x", f"vae/weights{suffix}": b"x"}
    write(tmp_path / "base", files)
    with pytest.raises(BundleInvalid, match=f"base/vae/weights{suffix} is a pickle") as caught:
        store(tmp_path).locate(ModelSource(path=Path("base")))
    assert "safe_serialization=True" in caught.value.remedy


def test_pickle_beside_safetensors_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "base", {"vae/m.safetensors": b"x", "vae/m.bin": b"x"})
    store(tmp_path).locate(ModelSource(path=Path("base")))


def test_directory_without_weights_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "base", {"model_index.json": b"{}"})
    with pytest.raises(BundleInvalid, match="holds no safetensors"):
        store(tmp_path).locate(ModelSource(path=Path("base")))


def test_digest_is_that_of_sha256sum_over_weights_and_settings(tmp_path: Path) -> None:
    folder = write(tmp_path, {"b.safetensors": b"1", "a/c.json": b"2", "a/notes.txt": b"3"})
    lines = "".join(
        f"{hashlib.sha256(data).hexdigest()}  {name}\n"
        for name, data in (("a/c.json", b"2"), ("b.safetensors", b"1"))
    )
    assert digest_weights(folder) == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
    ("change", "is_same"),
    [
        ({"b.safetensors": b"other"}, False),
        ({"c.safetensors": b"more"}, False),
        ({"a.json": b"other"}, False),
        ({"README.md": b"other"}, True),
        ({".cache/huggingface/a.json": b"other"}, True),
    ],
)
def test_digest_changes_with_weights_and_settings_alone(
    tmp_path: Path, change: dict[str, bytes], is_same: bool
) -> None:
    folder = write(tmp_path, {"b.safetensors": b"1", "a.json": b"2"})
    before = digest_weights(folder)
    assert (digest_weights(write(folder, change)) == before) is is_same


def test_pinned_directory_is_served_only_as_it_was(tmp_path: Path) -> None:
    folder = write(tmp_path / "base", {"m.safetensors": b"x"})
    pinned = ModelSource(path=Path("base"), sha256=digest_weights(folder))
    store(tmp_path).locate(pinned)
    write(folder, {"m.safetensors": b"y"})
    with pytest.raises(BundleInvalid, match=f"the bundle pins {pinned.sha256}"):
        store(tmp_path).locate(pinned)


def write_snapshot(cache: Path) -> Path:
    """A cache as the hub library leaves it: a commit's folder of links to blobs."""
    repo = write(cache / "models--owner--name", {"blobs/b10b": b"weights"})
    snapshot = repo / "snapshots" / REVISION
    (snapshot / "unet").mkdir(parents=True)
    os.symlink("../../../blobs/b10b", snapshot / "unet/model.safetensors")
    return snapshot


def test_cached_commit_is_found_without_asking_the_hub(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path)
    found = store(tmp_path, local_files_only=True, cache_dir=tmp_path).locate(SOURCE)
    assert found == str(snapshot)


def test_commit_that_is_not_cached_is_refused_without_asking_the_hub(
    tmp_path: Path, hub: Hub
) -> None:
    write_snapshot(tmp_path)
    other = ModelSource(repo="owner/name", revision="f" * 40)
    with pytest.raises(BundleInvalid, match="owner/name@ffffffff: LocalEntryNotFound") as caught:
        store(tmp_path, local_files_only=True, cache_dir=tmp_path).locate(other)
    assert str(tmp_path) in caught.value.remedy
    assert "local_files_only: false" in caught.value.remedy
    assert hub.asked == []


def test_cached_pickle_is_refused_by_name(tmp_path: Path) -> None:
    snapshot = write_snapshot(tmp_path)
    write(snapshot, {"vae/model.bin": b"x"})
    with pytest.raises(BundleInvalid, match=r"vae/model\.bin is a pickle"):
        store(tmp_path, local_files_only=True, cache_dir=tmp_path).locate(SOURCE)


def test_offline_mode_serves_what_is_cached_and_refuses_the_rest(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = write_snapshot(tmp_path)
    assert store(tmp_path, cache_dir=tmp_path).locate(SOURCE) == str(snapshot)
    other = ModelSource(repo="owner/name", revision="f" * 40)
    with pytest.raises(BundleInvalid, match="outgoing traffic has been disabled"):
        store(tmp_path, cache_dir=tmp_path).locate(other)
    assert hub.asked == []


def names(folder: str) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file()}


def test_download_fetches_the_commit_without_its_pickles(tmp_path: Path, hub: Hub) -> None:
    folder = store(tmp_path, cache_dir=tmp_path).locate(SOURCE)
    assert names(folder) == set(FILES) - {"unet/model.bin", "README.md"}
    assert not any("model.bin" in path for path in hub.asked)


def test_pipeline_download_leaves_out_what_repeats_its_weights(tmp_path: Path, hub: Hub) -> None:
    folder = store(tmp_path, cache_dir=tmp_path).locate_pipeline(SOURCE)
    wanted = {"model_index.json", "unet/model.safetensors", "tokenizer/merges.txt"}
    assert names(folder) == wanted


def test_subfolder_is_all_that_is_downloaded_of_a_repository(tmp_path: Path, hub: Hub) -> None:
    source = SOURCE.model_copy(update={"subfolder": "unet"})
    folder = store(tmp_path, cache_dir=tmp_path).locate(source)
    assert folder.endswith(f"snapshots/{REVISION}/unet")
    assert names(folder) == {"model.safetensors", "model.fp16.safetensors"}
    assert names(str(Path(folder).parent)) == {f"unet/{name}" for name in names(folder)}


def test_commit_that_the_hub_does_not_have_is_refused(tmp_path: Path, hub: Hub) -> None:
    other = ModelSource(repo="owner/name", revision="f" * 40)
    with pytest.raises(BundleInvalid, match="owner/name@ffffffff") as caught:
        store(tmp_path, cache_dir=tmp_path).locate(other)
    assert "revision" in caught.value.remedy


def test_hub_that_cannot_be_reached_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_hub(monkeypatch, free_port())
    monkeypatch.setattr("time.sleep", lambda s: None)  # the hub library waits before it tries again
    with pytest.raises(BundleInvalid, match="owner/name@01234567") as caught:
        store(tmp_path, cache_dir=tmp_path).locate(SOURCE)
    assert "network" in caught.value.remedy
