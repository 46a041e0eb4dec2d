"""What was fetched is what replicas find, and nothing else counts as there."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from huggingface_hub import constants
from typer.testing import CliRunner

from deployments.bundle import load_family
from deployments.needed import Need, list_needs
from deployments.prefetch import LEFTOVER_AGE_S, Download, Looked, fetch, look
from deployments.sources import ModelSource
from deployments.weights import FOLDER, PIPELINE, WeightStore
from serve.cli import app
from serve.config import WeightsConfig
from serve.errors import BundleInvalid
from serve.settings import free_port
from tests.hub_server import REVISION, Hub, use_hub

REPO = {"repo": "owner/name", "revision": REVISION}
BASE = Need(ModelSource(**REPO), PIPELINE, Path(), ("model_index.json",), ("eye@2",))
WANTED = {"model_index.json", "unet/model.safetensors", "tokenizer/merges.txt"}


class Seen:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.finished: list[str] = []
        self.num_bytes = 0

    def begin(self, downloads: Sequence[Download]) -> None:
        self.begun = [download.file.name for download in downloads]

    def start(self, download: Download) -> None: ...

    def advance(self, download: Download, num_bytes: int) -> None:
        self.num_bytes += num_bytes

    def finish(self, download: Download) -> None:
        self.finished.append(download.file.name)


def bring(cache: Path, need: Need = BASE, watcher: Seen | None = None) -> Looked:
    config = WeightsConfig(cache_dir=cache)
    (after,) = fetch(look([need], config), config, watcher or Seen())
    return after


def test_fetched_files_are_those_that_an_offline_replica_finds(tmp_path: Path, hub: Hub) -> None:
    seen = Seen()
    after = bring(tmp_path, watcher=seen)
    assert after.is_ready
    assert set(seen.finished) == WANTED
    assert seen.num_bytes == len(b"{}" + b"unet" + b"a b")
    asked = len(hub.asked)
    offline = WeightsConfig(cache_dir=tmp_path, local_files_only=True)
    folder = Path(WeightStore(Path(), offline).locate_pipeline(BASE.source))
    assert {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} == WANTED
    assert len(hub.asked) == asked


def test_again_it_asks_nobody_for_anything(tmp_path: Path, hub: Hub) -> None:
    bring(tmp_path)
    asked, seen = len(hub.asked), Seen()
    assert bring(tmp_path, watcher=seen).is_ready
    assert seen.begun == []
    assert len(hub.asked) == asked


def test_failed_file_fails_its_need_and_the_next_run_fetches_that_one_alone(
    tmp_path: Path, hub: Hub
) -> None:
    hub.broken = {"unet/model.safetensors"}
    after = bring(tmp_path)
    assert after.problem is not None
    assert "owner/name@01234567" in after.problem.detail
    offline = WeightsConfig(cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(BundleInvalid, match="IncompleteSnapshot"):
        WeightStore(Path(), offline).locate_pipeline(BASE.source)
    hub.broken.clear()
    before = len(hub.fetched)
    seen = Seen()
    assert bring(tmp_path, watcher=seen).is_ready
    assert "unet/model.safetensors" in hub.fetched[before:]
    assert "model_index.json" not in hub.fetched[before:]


def test_missing_bytes_are_known_before_anything_is_fetched(tmp_path: Path, hub: Hub) -> None:
    (before,) = look([BASE], WeightsConfig(cache_dir=tmp_path))
    assert not before.is_ready
    assert before.missing_bytes == len(b"{}" + b"unet" + b"a b")
    assert not any(path.startswith("GET") for path in hub.asked)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_full_disk_is_said_before_anything_is_fetched(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.prefetch.KEPT_FREE_BYTES", 2**62)
    with pytest.raises(BundleInvalid, match="GB are free") as caught:
        bring(tmp_path)
    assert "enlarge the volume" in caught.value.remedy
    assert not any(path.startswith("GET") for path in hub.asked)


def test_gated_repository_is_explained(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    hub.is_gated = True
    config = WeightsConfig(cache_dir=tmp_path)
    adapter = Need(ModelSource(**REPO, subfolder="unet"), FOLDER, Path(), ("x.safetensors",), ())
    for after in fetch(look([BASE, adapter], config), config, Seen()):
        assert after.problem is not None
        assert "accept the terms at" in after.problem.remedy
        assert "/owner/name" in after.problem.remedy
        assert "set HF_TOKEN" in after.problem.remedy


def test_commit_that_the_hub_lacks_names_the_bundles_revision(tmp_path: Path, hub: Hub) -> None:
    other = Need(
        ModelSource(repo="owner/name", revision="f" * 40), FOLDER, Path(), ("config.json",), ()
    )
    (looked,) = look([other], WeightsConfig(cache_dir=tmp_path))
    assert looked.problem is not None
    assert "owner/name@ffffffff" in looked.problem.detail
    assert "check" in looked.problem.remedy


def test_offline_mode_is_named_where_weights_would_be_fetched(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (looked,) = look([BASE], WeightsConfig(cache_dir=tmp_path))
    assert looked.problem is not None
    assert "unset it where weights are fetched" in looked.problem.remedy


def test_what_is_all_there_is_ready_without_a_hub(
    tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(tmp_path)
    use_hub(monkeypatch, free_port())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (looked,) = look([BASE], WeightsConfig(cache_dir=tmp_path))
    assert looked.is_ready


def test_parts_that_a_killed_run_left_are_deleted_once_nobody_writes_them(
    tmp_path: Path, hub: Hub
) -> None:
    blobs = tmp_path / "models--owner--name/blobs"
    blobs.mkdir(parents=True)
    left, written = blobs / "a.1.incomplete", blobs / "b.2.incomplete"
    for path in (left, written):
        path.write_bytes(b"part")
    old_s = left.stat().st_mtime - 2 * LEFTOVER_AGE_S
    os.utime(left, (old_s, old_s))
    assert bring(tmp_path).is_ready
    assert not left.exists()
    assert written.exists()


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def shards(*names: str) -> str:
    return json.dumps({"weight_map": {f"layer{i}": name for i, name in enumerate(names)}})


def local(folder: Path, *files: str) -> Looked:
    need = Need(ModelSource(path=folder), FOLDER, Path(), files, ("eye@2",))
    (looked,) = look([need], WeightsConfig())
    return looked


def test_directory_with_a_shard_missing_is_not_ready(tmp_path: Path) -> None:
    index = {"m.safetensors.index.json": shards("m-1.safetensors", "m-2.safetensors")}
    folder = write(tmp_path, {**index, "m-1.safetensors": "x", "config.json": "{}"})
    looked = local(folder, "config.json")
    assert looked.problem is not None
    assert "lacks m-2.safetensors" in looked.problem.detail
    write(tmp_path, {"m-2.safetensors": "x"})
    assert local(folder, "config.json").is_ready


def test_index_of_a_copy_that_is_left_out_wants_nothing(tmp_path: Path) -> None:
    index = {"m.fp16.safetensors.index.json": shards("m.fp16-1.safetensors")}
    assert local(write(tmp_path, {**index, "m.safetensors": "x"})).is_ready


def test_adapter_whose_file_has_another_name_is_not_ready(tmp_path: Path) -> None:
    looked = local(write(tmp_path, {"lora.safetensors": "x"}), "pytorch_lora_weights.safetensors")
    assert looked.problem is not None
    assert "pytorch_lora_weights.safetensors" in looked.problem.detail


def write_family(home: Path, backend: Mapping[str, object], masker: Mapping[str, object]) -> Path:
    expert = "bg" if masker["kind"] == "matting" else "eye"
    bundle = {
        **{"expert": expert, "name": "2", "title": "t", "status": "alpha"},
        "licence": {"name": "none", "commercial_use": True},
        **{
            "backend": dict(backend),
            "masker": dict(masker),
            "product": {"canvas": {"size": [96, 96]}},
        },
    }
    vision = {"source": {"path": "dino"}}
    family = {"experts": [{"version": f"{expert}@2"}], "judge": {}}
    files = {
        f"experts/{expert}.2.yaml": yaml.safe_dump(bundle),
        "family.yaml": yaml.safe_dump(family),
        "judge.yaml": yaml.safe_dump({"embedding": vision, "face": vision}),
    }
    return write(home, files) / "family.yaml"


def test_every_source_that_a_bundle_can_name_is_needed(tmp_path: Path) -> None:
    product = {"by": "ip_adapter", "source": {"path": "../ip"}, "weight_name": "ip.safetensors"}
    backend: dict[str, object] = {
        **{"kind": "inpaint", "model": {"path": "../base"}, "transformer": {"path": "../unet"}},
        "adapter": {"source": {"path": "../lora"}, "weight_name": "lora.safetensors"},
        "prompt": {"text": "p"},
        "recipe": {"pipeline": "StableDiffusionInpaintPipeline", "product": product},
    }
    matting = {"kind": "matting", "model": {"path": "../matte"}, "parser": {"path": "../parser"}}
    landmarks = {"kind": "landmarks", "model": {"path": "../pose"}, "detector": {"path": "../box"}}
    parsing = {"kind": "parsing", "model": {"path": "../parser"}}
    found: dict[str, tuple[object, tuple[str, ...]]] = {}
    for name, masker in (("p", parsing), ("m", matting), ("l", landmarks)):
        path = write_family(tmp_path / name, backend, masker)
        for need in list_needs(path, *load_family(path)):
            found[Path(need.label).name] = need.reading, need.files
    assert found == {
        "base": (PIPELINE, ("model_index.json",)),
        "unet": (FOLDER, ("config.json",)),
        "lora": (FOLDER, ("lora.safetensors",)),
        "ip": (FOLDER, ("ip.safetensors", "models/image_encoder/config.json")),
        "parser": (FOLDER, ("config.json",)),
        "matte": (FOLDER, ("config.json",)),
        "pose": (FOLDER, ("config.json",)),
        "box": (FOLDER, ("config.json",)),
        "dino": (FOLDER, ("config.json",)),
    }


def sm4ll(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["experts", "fetch", *map(str, arguments)])


def test_family_without_weights_has_nothing_to_fetch() -> None:
    answer = sm4ll()
    assert answer.exit_code == 0
    assert "none of 7 versions has weights (warp)" in answer.output


def test_command_checks_fetches_and_then_finds_everything(tmp_path: Path, hub: Hub) -> None:
    hub.files |= {"config.json": b"{}", "lora/l.safetensors": b"lora"}
    backend: dict[str, object] = {
        **{"kind": "inpaint", "model": REPO, "prompt": {"text": "p"}},
        "adapter": {"source": {**REPO, "subfolder": "lora"}, "weight_name": "l.safetensors"},
        "recipe": {"pipeline": "Flux2KleinInpaintPipeline"},
    }
    path = write_family(tmp_path, backend, {"kind": "classical"})
    write(tmp_path / "dino", {"config.json": "{}", "model.safetensors": "x"})
    cache = tmp_path / "hub"
    text = path.read_text() + f"weights: {{cache_dir: {cache}, local_files_only: true}}\n"
    path.write_text(text)
    looked = sm4ll("--family", path, "--check")
    assert looked.exit_code == 1
    assert "owner/name@01234567/lora" in looked.output
    assert "1 of 1 files are missing" in looked.output
    assert not cache.exists()
    fetched = sm4ll("--family", path)
    assert fetched.exit_code == 0, fetched.output
    assert "files to fetch" in fetched.output
    assert "owner/name@01234567 lora/l.safetensors" in fetched.output
    assert f"Everything is there, in {cache}" in fetched.output
    again = sm4ll("--family", path, "--check")
    assert again.exit_code == 0
    assert "files to fetch" not in again.output


def test_command_imports_no_torch() -> None:
    code = "import sys; from serve.commands import fetch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
