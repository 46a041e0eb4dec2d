"""A receipt says who shared the pass and what a third party charged."""

import numpy as np

from deployments.bundle import Bundle, Licence
from deployments.recipes import NoopConfig
from serve.catalog import Choice
from serve.messages import ExpertReply, UpstreamCost
from serve.observing.watch import Stopwatch
from serve.receipts import passthrough_receipt
from serve.schemas.receipt import Receipt, Upstream
from serve.schemas.tryon import TryOnOptions
from serve.steps import TryOnWork


def receipt(**reply: object) -> Receipt:
    bundle = Bundle(
        expert="top",
        name="noop",
        title="t",
        status="benchmark",
        licence=Licence(name="none", commercial_use=True),
        backend=NoopConfig(),
    )
    work = TryOnWork(TryOnOptions(expert="top"), b"", b"", None, "req_1", 1.0)
    images = np.zeros((1, 1, 1, 3), np.uint8)
    painted = ExpertReply(images, None, bundle.version, **reply)  # type: ignore[arg-type]
    made = passthrough_receipt(work, Choice(bundle, "default"), painted, Stopwatch())
    return Receipt.model_validate_json(made.model_dump_json())


def test_receipt_says_which_pass_the_picture_came_from() -> None:
    made = receipt(batch_size=3, batch_id="b7", batch_index=2)
    assert (made.batch_size, made.batch_id, made.batch_index) == (3, "b7", 2)


def test_receipt_says_what_a_third_party_charged() -> None:
    charged = receipt(cost=UpstreamCost("fashn", 0.15, credits=2.0)).upstream
    assert charged == Upstream(provider="fashn", usd=0.15, credits=2.0)


def test_receipt_of_a_picture_painted_here_names_no_third_party() -> None:
    assert receipt().upstream is None
