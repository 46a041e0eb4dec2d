"""An installation without the libraries of the weights says what is missing and what helps."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BACKEND = """
from deployments.backends.registry import create_backend
from serve.config import ReplicaPlan
from tests.test_warmup import bundle, inpaint
create_backend((bundle(inpaint()),), ReplicaPlan(name="r"))
"""
MASKER = """
from pathlib import Path
from deployments.maskers import ParsingMasker
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.registry import create_segmenter
from deployments.sources import ModelSource
masker = ParsingMasker(model=ModelSource(path=Path("parser")))
create_segmenter(masker, SegmenterPlan(1)).load()
"""


@pytest.mark.parametrize(
    ("code", "what"), [(BACKEND, "backend inpaint"), (MASKER, "masker parsing")]
)
def test_missing_torch_is_named_with_the_extra_that_brings_it(code: str, what: str) -> None:
    missing = "import sys; sys.modules['torch'] = None\n"
    done = subprocess.run(
        [sys.executable, "-c", missing + code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"BundleInvalid: {what} needs torch, which is not installed" in done.stderr
