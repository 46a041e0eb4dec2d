"""`sm4ll plan` and `sm4ll profile` as a person uses them, with files on disk and nothing faked."""

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml
from click.testing import Result
from PIL import Image
from typer.testing import CliRunner

from deployments.bundle import load_bundle, load_family
from deployments.measured import load_footprints
from deployments.options import expert_options, group_experts
from deployments.packing.plan_file import read_plan
from serve.cli import main
from serve.commands.drawing import Box, Drawing, Words, fit_words, to_png, to_svg
from serve.commands.plan import plan
from serve.commands.profile import profile
from serve.errors import ConfigError, PackingImpossible
from tests.measured_family import write_bundle, write_family, write_footprint, write_placement
from tests.tiny.family import SHARED_BASE, lora_bundle
from tests.tiny.klein import build_klein, build_klein_lora

SVG = "{http://www.w3.org/2000/svg}"
VERSIONS = {"eye@2": 5.0, "face@2": 6.0, "top@2": 15.0}

app = typer.Typer()
app.command()(plan)
app.command()(profile)


def sm4ll(*arguments: str) -> Result:
    """Refusals come out as they are: `serve.cli.main` puts them into words."""
    result = CliRunner(env={"COLUMNS": "100"}).invoke(app, arguments)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, ...]:
    """Options that name a family of three measured versions and two nodes of two L4 each."""
    for version, peak_gib in VERSIONS.items():
        write_footprint(write_bundle(tmp_path, version), peak_gib)
    lines = [f"  - {{version: {version}}}" for version in VERSIONS]
    family = write_family(tmp_path, "\n".join(["experts:", *lines]))
    return ("--family", str(family), "--placement", str(write_placement(tmp_path)))


def test_plan_shows_every_replica_with_its_share_and_what_is_free(files: tuple[str, ...]) -> None:
    answer = sm4ll("plan", *files)
    assert answer.exit_code == 0
    assert answer.stdout.startswith("6 replicas of 3 deployments on 3 of 4 GPUs")
    for expected in ("eye@2 0.2223", "face@2 0.2668", "top@2 1", "GiB free", "1 GPU empty: "):
        assert expected in answer.stdout


def test_the_shipped_family_is_told_that_it_needs_no_gpu() -> None:
    answer = sm4ll("plan")
    assert answer.exit_code == 0
    assert "No replica needs a GPU" in answer.stdout
    assert "top@1  warp x 4" in answer.stdout
    assert "sm4ll profile" in answer.stdout


def test_versions_without_weights_are_listed_beside_those_with(
    files: tuple[str, ...], tmp_path: Path
) -> None:
    write_bundle(tmp_path, "bg@1", backend={"kind": "inpaint"})
    (tmp_path / "experts/bg.1.yaml").write_text(
        "{expert: bg, name: '1', title: warp, status: alpha, "
        "licence: {name: none, commercial_use: true}}"
    )
    family = tmp_path / "family.yaml"
    family.write_text(f"{family.read_text()}\n  - {{version: bg@1}}")
    answer = sm4ll("plan", *files)
    assert "bg@1  warp x 2" in answer.stdout
    assert "None of these versions has weights" not in answer.stdout


def test_what_does_not_fit_is_refused_and_no_picture_is_written(
    files: tuple[str, ...], tmp_path: Path
) -> None:
    write_placement(tmp_path, wanted={"top@2": 5})
    picture = tmp_path / "plan.svg"
    with pytest.raises(PackingImpossible, match=r"top@2: \d of 5 replicas find no place"):
        sm4ll("plan", *files, "-o", str(picture))
    assert not picture.exists()


def test_refusal_is_words_and_exit_1_on_the_command_line(
    files: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    write_placement(tmp_path, wanted={"top@2": 5})
    monkeypatch.setattr("sys.argv", ["sm4ll", "plan", *files])
    with pytest.raises(SystemExit) as left:
        main()
    said = capfd.readouterr().err
    assert left.value.code == 1
    assert "top@2: " in said
    assert "GiB short" in said
    assert "What helps: " in said
    assert "Traceback" not in said


def boxes(tree: ET.Element) -> Iterator[tuple[str, float, float]]:
    """Hint, y and height of every box that has a hint."""
    for rect in tree.iter(f"{SVG}rect"):
        title = rect.find(f"{SVG}title")
        if title is not None and title.text:
            yield title.text, float(rect.attrib["y"]), float(rect.attrib["height"])


def test_picture_stacks_every_replica_in_its_gpu_at_its_size(
    files: tuple[str, ...], tmp_path: Path
) -> None:
    picture = tmp_path / "plan.svg"
    assert sm4ll("plan", *files, "-o", str(picture)).exit_code == 0
    tree = ET.fromstring(picture.read_text())
    words = [text.text for text in tree.iter(f"{SVG}text")]
    assert {"gpu-a", "gpu-b", *VERSIONS} <= set(words)
    drawn = list(boxes(tree))
    gpus = [(y, height) for hint, y, height in drawn if "NVIDIA L4" in hint]
    assert len(gpus) == 4
    shares = [(hint, y, height) for hint, y, height in drawn if "num_gpus" in hint]
    assert {hint.split(":")[0] for hint, _, _ in shares} == {
        f"{version} #{replica}" for version in VERSIONS for replica in (0, 1)
    }
    full_height = gpus[0][1]
    for hint, y, height in shares:
        assert any(top <= y + 0.1 and y + height <= top + tall + 0.1 for top, tall in gpus)
        if hint.startswith("eye@2"):
            assert height == pytest.approx(full_height * 5.0 / 22.5, abs=2)


def test_reserve_is_hatched(files: tuple[str, ...], tmp_path: Path) -> None:
    write_placement(tmp_path, reserve=0.1)
    picture = tmp_path / "plan.svg"
    sm4ll("plan", *files, "-o", str(picture))
    tree = ET.fromstring(picture.read_text())
    assert tree.find(f"{SVG}pattern") is not None
    kept = [height for hint, _, height in boxes(tree) if "kept free" in hint]
    assert kept
    assert all(height == pytest.approx(25, abs=1) for height in kept)


@pytest.mark.parametrize("num_nodes", [2, 10, 40])
def test_picture_of_any_number_of_gpus_is_written_in_every_format(
    files: tuple[str, ...], tmp_path: Path, num_nodes: int
) -> None:
    gpus = [{"name": "NVIDIA L4", "gib": 22.5, "count": 8}]
    write_placement(tmp_path, nodes=[{"name": "gpu", "count": num_nodes, "gpus": gpus}])
    for ending in ("svg", "html", "png"):
        assert sm4ll("plan", *files, "-o", str(tmp_path / f"plan.{ending}")).exit_code == 0
    svg = (tmp_path / "plan.svg").read_text()
    tree = ET.fromstring(svg)
    assert sum("NVIDIA L4" in hint for hint, _, _ in boxes(tree)) == 8 * num_nodes
    assert "<svg" in (tmp_path / "plan.html").read_text()
    with Image.open(tmp_path / "plan.png") as image:
        assert image.width == pytest.approx(2 * float(tree.attrib["width"]), abs=2)
        assert len(image.getcolors(maxcolors=2**24) or []) > 20


def test_unknown_picture_format_is_refused_before_anything_is_planned() -> None:
    answer = sm4ll("plan", "-o", "plan.bmp")
    assert answer.exit_code == 2
    assert ".svg .html .png .yaml" in answer.output


def test_yaml_is_a_family_whose_deployments_ask_ray_for_the_planned_share(
    files: tuple[str, ...], tmp_path: Path
) -> None:
    answer = sm4ll("plan", *files, "--yaml")
    (tmp_path / "family.yaml").write_text(answer.stdout)
    family, bundles = load_family(tmp_path / "family.yaml")
    asked = {
        group.name: expert_options(group)["ray_actor_options"]["num_gpus"]
        for group in group_experts(family, bundles)
    }
    assert asked == {"Expert-eye@2": 0.2223, "Expert-face@2": 0.2668, "Expert-top@2": 1.0}


def test_a_plan_kept_as_a_file_is_what_the_next_one_starts_from(
    files: tuple[str, ...], tmp_path: Path
) -> None:
    first = tmp_path / "plan.yaml"
    sm4ll("plan", *files, "-o", str(first))
    write_footprint(write_bundle(tmp_path, "shoes@2"), 4.0)
    family = tmp_path / "family.yaml"
    family.write_text(f"{family.read_text()}\n  - {{version: shoes@2}}")
    second = tmp_path / "second.yaml"
    answer = sm4ll("plan", *files, "--previous", str(first), "-o", str(second))
    assert "6 replicas stay" in answer.stdout
    before, after = read_plan(first), read_plan(second)
    for old, new in zip(before.gpus, after.gpus, strict=True):
        assert {(s.name, s.replica) for s in old.shares} <= {
            (s.name, s.replica) for s in new.shares
        }


def test_a_file_that_is_no_plan_is_refused_by_name(files: tuple[str, ...], tmp_path: Path) -> None:
    other = tmp_path / "family.yaml"
    with pytest.raises(ConfigError, match=r"family\.yaml: .*gpus"):
        sm4ll("plan", *files, "--previous", str(other))


def test_words_are_cut_to_their_room() -> None:
    assert fit_words("eye@2", 10, 100) == "eye@2"
    assert fit_words("eye@klein-lora-3", 10, 60) == "eye@klein…"
    assert fit_words("eye@2", 10, 10) == ""


def test_drawing_escapes_what_is_written_on_it() -> None:
    shapes = [Box(0, 0, 50, 20, "#ff0000", hint="<&>"), Words(2, 15, "<a & b>", 10, "#000000")]
    drawing = Drawing(60, 30, "#ffffff", "<plan>", shapes)
    tree = ET.fromstring(to_svg(drawing))
    assert [text.text for text in tree.iter(f"{SVG}text")] == ["<a & b>"]
    with Image.open(io.BytesIO(to_png(drawing))) as image:
        assert image.size == (120, 60)
        assert image.getpixel((90, 10)) == (255, 0, 0)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two LoRA versions on one tiny base, as shared replicas."""
    home = tmp_path_factory.mktemp("tiny")
    build_klein(home / "models/klein")
    (home / "experts").mkdir()
    for seed, expert in enumerate(("eye", "shoes")):
        build_klein_lora(home / "models" / expert, seed=seed)
        text = yaml.safe_dump(lora_bundle(expert))
        (home / "experts" / f"{expert}.lora.yaml").write_text(text)
    lines = [f"  - {{version: {expert}@lora, shared: klein}}" for expert in ("eye", "shoes")]
    write_family(home, "\n".join([f"{SHARED_BASE}experts:", *lines]))
    return home


def test_what_profile_measured_is_what_plan_packs_by(tiny: Path) -> None:
    family = ("--family", str(tiny / "family.yaml"))
    for version in ("eye@lora", "shoes@lora"):
        answer = sm4ll("profile", version, *family, "--sizes", "96x128", "--batches", "1,2")
        assert answer.exit_code == 0
        assert "96x128" in answer.stdout
        assert f"{version.replace('@', '.')}/footprint.yaml" in answer.stdout.replace("\n", "")
    bundle = load_bundle(tiny / "experts/eye.lora.yaml")
    (footprint,) = load_footprints(bundle)
    assert [(peak.batch, peak.width_px) for peak in footprint.peaks] == [(1, 96), (2, 96)]
    assert {time.num_steps for time in footprint.times} == {1, 2}
    nodes = [{"name": "here", "gpus": [{"name": footprint.device, "gib": 16.0}]}]
    placement = write_placement(tiny, nodes=nodes)
    answer = sm4ll("plan", *family, "--placement", str(placement))
    assert answer.stdout.startswith("1 replica of 1 deployment on 1 of 1 GPU")
    assert "klein" in answer.stdout


def test_versions_of_one_command_are_measured_each_from_nothing(tiny: Path) -> None:
    family = ("--family", str(tiny / "family.yaml"))
    answer = sm4ll("profile", "eye@lora", "shoes@lora", *family, "--batches", "1", "--steps", "1")
    assert answer.exit_code == 0
    loads_gib = []
    for expert in ("eye", "shoes"):
        (footprint,) = load_footprints(load_bundle(tiny / f"experts/{expert}.lora.yaml"))
        assert [(peak.batch, peak.width_px) for peak in footprint.peaks] == [(1, 192)]
        loads_gib.append(footprint.load_peak_gib)
    assert min(loads_gib) > max(loads_gib) / 2


def test_a_typo_in_the_last_version_is_seen_before_the_first_is_measured(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="eye@typo"):
        sm4ll("profile", "shoes@lora", "eye@typo", "--family", str(tiny / "family.yaml"))


def test_a_version_without_weights_has_nothing_to_measure() -> None:
    answer = sm4ll("profile", "eye@1")
    assert answer.exit_code == 0
    assert "no weights" in answer.stdout


def test_an_unknown_version_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"eye@77: no such file .* there are bg@1"):
        sm4ll("profile", "eye@77")


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--sizes", "768", "WIDTHxHEIGHT"),
        ("--sizes", "768x0", "WIDTHxHEIGHT"),
        ("--batches", "1,zero", "numbers from 1"),
        ("--batches", "32", "at most 16"),
        ("--steps", "0", "numbers from 1"),
    ],
)
def test_wrong_numbers_are_refused_before_anything_is_loaded(
    files: tuple[str, ...], option: str, value: str, said: str
) -> None:
    answer = sm4ll("profile", "eye@2", *files[:2], option, value)
    assert answer.exit_code == 2
    assert said in answer.output.replace("\n", " ")
