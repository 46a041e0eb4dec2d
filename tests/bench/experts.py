"""ExpertReplica beside a plain call of the same diffusers pipeline: same process, rounds in turn.

Both paint with the tiny FLUX.2 klein on this machine, prompt embeddings computed beforehand. The
plain call is what a user writes: PIL pictures in, a PIL picture out, then uint8. Target: at most
1.05 times its seconds. What is around the pipeline costs the same whatever its size, so on a real
one its share is smaller still; the last line says how much that is.
"""

import argparse
import asyncio
import datetime as dt
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import Flux2KleinInpaintPipeline
from diffusers.utils import logging as diffusers_logging
from PIL import Image
from rich.console import Console
from transformers.utils import logging as transformers_logging

from deployments.backends.diffusion.cap import name_device
from deployments.backends.diffusion.device import choose_device, choose_dtype
from deployments.backends.noop import NoopBackend
from deployments.bundle import Bundle
from deployments.expert import ExpertReplica
from deployments.measured import Footprint, Peak, ServiceTime, save_footprint
from serve.config import ReplicaPlan
from serve.messages import ExpertReply, ExpertRequest, Landmarks
from tests.tiny.klein import build_klein

WIDTH_PX, HEIGHT_PX, PRODUCT_PX = 256, 384, 192
NUM_STEPS = 24
NUM_TOGETHER = 4
MIN_ROUNDS = 5
TARGET = 1.05
PROMPT = "the person wears the top of the second picture"
err = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Line:
    """Two ways to do the same work, per picture."""

    what: str
    plain_s: float
    replica_s: float
    ratio: float
    """Median over rounds of theirs, so that what slows both down counts for neither."""
    num_rounds: int
    target: float | None = None

    def cells(self) -> tuple[str, ...]:
        verdict = ""
        if self.target is not None:
            verdict = f"{'met' if self.ratio <= self.target else 'missed'}: {self.target:.2f}"
        seconds = f"{self.plain_s * 1e3:.1f}", f"{self.replica_s * 1e3:.1f}"
        return self.what, *seconds, f"{self.ratio:.3f}", str(self.num_rounds), verdict


def make_bundle(folder: Path) -> Bundle:
    fields: dict[str, Any] = {
        "expert": "top",
        "name": "tiny",
        "title": "benchmark",
        "status": "benchmark",
        "licence": {"name": "none", "commercial_use": True},
        "backend": {
            "kind": "inpaint",
            "model": {"path": "klein"},
            "prompt": {"text": PROMPT},
            "recipe": {"pipeline": "Flux2KleinInpaintPipeline"},
            "max_batch_size": NUM_TOGETHER,
        },
        "product": {"canvas": {"size": [PRODUCT_PX, PRODUCT_PX]}},
    }
    return Bundle.model_validate(fields).located(folder)


def make_request(seed: int, product_seed: int) -> ExpertRequest:
    rng = np.random.default_rng(seed)
    region_hw = np.zeros((HEIGHT_PX, WIDTH_PX), np.uint8)
    region_hw[HEIGHT_PX // 4 : -HEIGHT_PX // 4, WIDTH_PX // 4 : -WIDTH_PX // 4] = 255
    product_rng = np.random.default_rng(product_seed)
    product_hwc = product_rng.integers(0, 255, (PRODUCT_PX, PRODUCT_PX, 4), dtype=np.uint8)
    product_hwc[..., 3] = 255
    return ExpertRequest(
        request_id=f"r{seed}",
        version="top@tiny",
        crop_hwc=rng.integers(0, 255, (HEIGHT_PX, WIDTH_PX, 3), dtype=np.uint8),
        region_hw=region_hw,
        silhouette_hw=None,
        landmarks=Landmarks(),
        product_hwc=product_hwc,
        product_landmarks=Landmarks(),
        seed=seed,
        num_steps=NUM_STEPS,
        deadline_unix_s=time.time() + 600,
    )


class PlainPipeline:
    """The pipeline as its own documentation calls it."""

    def __init__(self, folder: Path):
        device = choose_device()
        self._pipe: Any = Flux2KleinInpaintPipeline.from_pretrained(
            folder / "klein",
            dtype=choose_dtype("auto", device),
            use_safetensors=True,
            local_files_only=True,
        ).to(device)
        self._pipe.set_progress_bar_config(disable=True)
        with torch.no_grad():
            self._embeds, _ = self._pipe.encode_prompt(PROMPT)

    def paint(self, request: ExpertRequest, pictures: tuple[Image.Image, ...]) -> Any:
        crop, region, product = pictures
        painted = self._pipe(
            prompt_embeds=self._embeds,
            image=crop,
            mask_image=region,
            image_reference=product,
            width=WIDTH_PX,
            height=HEIGHT_PX,
            strength=1.0,
            num_inference_steps=request.num_steps,
            guidance_scale=1.0,
            generator=torch.Generator("cpu").manual_seed(request.seed),
        )
        return np.asarray(painted.images[0])


def as_pil(request: ExpertRequest) -> tuple[Image.Image, ...]:
    arrays = request.crop_hwc, request.region_hw, request.product_hwc[..., :3]
    return tuple(Image.fromarray(np.ascontiguousarray(array)) for array in arrays)


def seconds(work: Callable[[], object]) -> float:
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def compare(
    what: str,
    rounds: Callable[[int], tuple[Callable[[], object], Callable[[], object]]],
    budget_s: float,
    num_pictures: int = 1,
    target: float | None = None,
) -> Line:
    """Time both in turn until the budget is spent; who begins changes from round to round."""
    plain_s: list[float] = []
    replica_s: list[float] = []
    index = 0
    until_s = time.perf_counter() + budget_s
    while time.perf_counter() < until_s or len(plain_s) < MIN_ROUNDS:
        plain, replica = rounds(index)
        if index % 2:
            after_s, before_s = seconds(replica), seconds(plain)
        else:
            before_s, after_s = seconds(plain), seconds(replica)
        index += 1
        if index <= 2:
            continue  # whatever is loaded and cached once is by now
        plain_s.append(before_s / num_pictures)
        replica_s.append(after_s / num_pictures)
    ratios = [ours / theirs for ours, theirs in zip(replica_s, plain_s, strict=True)]
    medians = statistics.median(plain_s), statistics.median(replica_s)
    line = Line(what, *medians, statistics.median(ratios), len(ratios), target)
    err.print(f"  {line}", markup=False, highlight=False)
    return line


class Bench:
    """The pipeline, and replicas on the same weights: one that batches and one that does not."""

    def __init__(self, folder: Path, loop: asyncio.Runner):
        build_klein(folder / "klein")
        self._loop = loop
        self.pipeline = PlainPipeline(folder)
        bundle = make_bundle(folder)
        plan = ReplicaPlan(name="Expert-top@tiny")
        self.alone = ExpertReplica((bundle,), plan)
        # Told that four pay, so that the batcher takes four; whether they do, its line shows.
        save_footprint(bundle, claim_four_pay())
        self.batching = ExpertReplica((bundle,), plan)

    def paint(self, replica: ExpertReplica, requests: list[ExpertRequest]) -> list[ExpertReply]:
        async def all_at_once() -> list[ExpertReply]:
            return await asyncio.gather(*map(replica.generate, requests))

        return self._loop.run(all_at_once())

    def check_same_work(self) -> None:
        """Both paint one picture of the crop's size, and neither a black one."""
        request = make_request(0, 0)
        plain = self.pipeline.paint(request, as_pil(request))
        (reply,) = self.paint(self.alone, [request])
        assert plain.shape == reply.images_nhwc[0].shape == (HEIGHT_PX, WIDTH_PX, 3)
        assert plain.any()
        assert reply.images_nhwc.any()

    def one(self, index: int, product_seed: int) -> tuple[Callable[[], object], ...]:
        request = make_request(index, product_seed)
        pictures = as_pil(request)
        return (
            lambda: self.pipeline.paint(request, pictures),
            lambda: self.paint(self.alone, [request]),
        )

    def four(self, index: int) -> tuple[Callable[[], object], ...]:
        requests = [
            replace(make_request(NUM_TOGETHER * index + at, index), request_id=f"r{index}-{at}")
            for at in range(NUM_TOGETHER)
        ]

        def together() -> None:
            sizes = [reply.batch_size for reply in self.paint(self.batching, requests)]
            assert max(sizes) > 1, f"nothing was batched: {sizes}"

        return lambda: self.paint(self.alone, requests), together


def claim_four_pay() -> Footprint:
    shape = {"width_px": WIDTH_PX, "height_px": HEIGHT_PX}
    times = tuple(
        ServiceTime(**shape, num_steps=NUM_STEPS, batch=batch, s_per_image=1 / batch)
        for batch in (1, NUM_TOGETHER)
    )
    return Footprint(
        device=name_device(),
        device_gib=1.0,
        torch=torch.__version__,
        date=dt.date.today().isoformat(),
        weights_gib=0.0,
        load_s=0.0,
        peaks=(Peak(**shape, batch=NUM_TOGETHER, peak_gib=0.1),),
        times=times,
    )


def measure_bare_us(loop: asyncio.Runner, num_requests: int = 2000) -> float:
    """Microseconds that the replica adds to a backend that does nothing."""
    bundle = make_bundle(Path())
    noop = NoopBackend(bundle.version)
    replica = ExpertReplica((bundle,), ReplicaPlan(name="noop"), lambda bundles, plan: noop)
    request = make_request(0, 0)

    async def through_replica() -> None:
        for _ in range(num_requests):
            await replica.generate(request)

    def direct() -> None:
        for _ in range(num_requests):
            noop.generate([request], lambda step, num_steps: None)

    loop.run(through_replica())
    return (seconds(lambda: loop.run(through_replica())) - seconds(direct)) / num_requests * 1e6


def measure(budget_s: float) -> tuple[tuple[Line, ...], float]:
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner() as loop:
        bench = Bench(Path(folder), loop)
        bench.check_same_work()
        lines = (
            compare(
                "a new product each time",
                lambda index: bench.one(index, product_seed=1000 + index),
                budget_s,
                target=TARGET,
            ),
            compare(
                "the same product each time",
                lambda index: bench.one(index, product_seed=1),
                budget_s,
            ),
            compare(
                f"{NUM_TOGETHER} at once: one after another, then as a batch",
                bench.four,
                budget_s,
                num_pictures=NUM_TOGETHER,
            ),
        )
        return lines, measure_bare_us(loop)


def table(lines: tuple[Line, ...], bare_us: float) -> str:
    head = "| | plain ms | replica ms | ratio | rounds | target |", "|---|---|---|---|---|---|"
    rows = [f"| {' | '.join(line.cells())} |" for line in lines]
    facts = (
        f"Tiny FLUX.2 klein, {WIDTH_PX}x{HEIGHT_PX}, {NUM_STEPS} steps, "
        f"{torch.get_num_threads()} of {os.cpu_count()} cores, torch {torch.__version__}, "
        f"{dt.date.today().isoformat()}. Milliseconds per picture, medians; "
        "ratios are medians over rounds."
    )
    bare = f"Around a backend that does nothing, the replica takes {bare_us:.0f} us per request."
    return "\n".join([facts, "", *head, *rows, "", bare])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="Per line of the table.")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    report = table(*measure(arguments.seconds))
    print(report)
    if arguments.output is not None:
        arguments.output.write_text(report + "\n")


if __name__ == "__main__":
    main()
