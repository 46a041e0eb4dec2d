"""What was erased is remembered by no router and no segmenter of a cluster."""

import pytest

from serve.client import Client
from serve.demo.cases import demo_cases
from serve.schemas.tryon import TryOnOptions
from tests.up import Up

pytestmark = pytest.mark.ray


def test_an_erasure_reaches_every_router(up: Up) -> None:
    """Whichever of the two answers next: it knew the person, and finds the region anew."""
    case = next(case for case in demo_cases() if case.expert == "top")
    person, product = case.person_path.read_bytes(), case.product_path.read_bytes()
    options = TryOnOptions(expert="top", version="top@noop", seed=1)
    with Client(up.url, up.open_tenant("forgetting")) as api:

        def is_remembered() -> tuple[bool, bool]:
            receipt = api.tryon(options, person, product).receipt
            return receipt.segmentation_cached, receipt.product_cached

        for _ in range(4):
            api.assets.upload(person, subject="dora")
            assert not is_remembered()[0]
            assert [is_remembered()[0] for _ in range(3)] == [True] * 3
            assert api.assets.erase("dora").is_complete
        # The product is nobody's whom somebody erased; both routers have seen it by now.
        assert is_remembered() == (False, True)
