"""Every curl line that the README tells a tenant to type works as it is printed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from serve.demo.cases import demo_cases
from tests.up import Up

README = (Path(__file__).parents[1] / "README.md").read_text()
HEADINGS = (
    "Keys and tenants",
    "Quotas and usage",
    "Jobs",
    "Batches",
    "Webhooks",
    "Pictures kept",
)
ADDRESS = "http://127.0.0.1:8000"
TOP = next(case for case in demo_cases() if case.expert == "top")
TIMEOUT_S = 180


def find_blocks(heading: str) -> list[str]:
    """What the README tells to type below a heading; it must be there."""
    _, found, text = README.partition(f"\n## {heading}\n")
    assert found, f"the README has no heading {heading}"
    section = text.partition("\n## ")[0]
    blocks = [block for block in re.findall(r"```sh\n(.*?)```", section, re.S) if "curl" in block]
    assert blocks, f"the README shows no curl below {heading}"
    return blocks


@pytest.fixture
def home(tmp_path: Path, up: Up) -> Path:
    """A person's own folder, with the pictures and where `sm4ll up` keeps its key."""
    keys = tmp_path / ".local/share/sm4ll"
    keys.mkdir(parents=True)
    (keys / "local.key").write_text(up.key)
    for name, path in (("person", TOP.person_path), ("product", TOP.product_path)):
        with Image.open(path) as picture:
            picture.convert("RGB").save(tmp_path / f"{name}.jpg", quality=95)
    return tmp_path


@pytest.mark.ray
def test_every_curl_line_works_from_the_first_to_the_last(home: Path, up: Up) -> None:
    script = ""
    for heading in HEADINGS:
        script += f"echo; echo '## {heading}'\n{''.join(find_blocks(heading))}"
    assert ADDRESS in script
    answer = subprocess.run(
        # Another test may have made a tenant of that name here: it is the documents' example.
        [
            "bash",
            "-euo",
            "pipefail",
            "-c",
            script.replace(ADDRESS, up.url).replace("acme", "readme"),
        ],
        cwd=home,
        env={
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    told = f"{answer.stdout[-3000:]}\n{answer.stderr[-2000:]}"
    assert answer.returncode == 0, told
    assert "urn:sm4ll:problem" not in answer.stdout, told
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", answer.stdout, re.M | re.S))
    assert list(sections) == list(HEADINGS)
    assert '"status":"succeeded"' in sections["Jobs"], told
    assert "event: finished" in sections["Jobs"]
    assert (home / "out.png").read_bytes().startswith(b"\x89PNG")
    assert (home / "again.jpg").read_bytes() == (home / "person.jpg").read_bytes()


@pytest.mark.parametrize("heading", HEADINGS)
def test_every_curl_line_fails_aloud(heading: str) -> None:
    for block in find_blocks(heading):
        assert block.count("curl ") == block.count("curl -sS --fail-with-body ")
