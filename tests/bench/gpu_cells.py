"""One measurement of the GPU benchmark; each runs in a process of its own."""

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from PIL import Image

from deployments.backends.base import Backend
from deployments.backends.diffusion.quality import measure_quality
from deployments.backends.diffusion.registry import create_recipe
from deployments.backends.registry import create_backend
from deployments.bundle import Bundle, Canvas, Crop, Licence, Product
from deployments.recipes import (
    Adapter,
    Flux2KleinInpaint,
    InpaintConfig,
    Prompt,
    Speed,
    StableDiffusionInpaint,
    StableDiffusionXLInpaint,
)
from deployments.sources import ModelSource
from serve.config import ReplicaPlan
from serve.errors import OutOfDeviceMemory
from serve.messages import ExpertRequest, Landmarks
from tests.bench.real_sizes import BUILDERS, build_klein_lora

NUM_STEPS = {"sd": 16, "sdxl": 16, "klein": 4}
GUIDANCE = {"sd": 5.0, "sdxl": 5.0, "klein": 1.0}
# The canvas the denoiser works on is 768x1024: a diptych is twice as wide as its crop.
CROP_SIZES = {"sd": (384, 1024), "sdxl": (384, 1024), "klein": (768, 1024)}
TINY_CROPS = {"sd": (64, 128), "sdxl": (64, 128), "klein": (128, 128)}
RECIPES = {
    "sd": StableDiffusionInpaint(),
    "sdxl": StableDiffusionXLInpaint(),
    "klein": Flux2KleinInpaint(),
}
PROMPT = Prompt(text="the person wears the top of the second picture")
MAX_GREEDY_ROWS = 16


@dataclass(frozen=True, slots=True)
class Cell:
    """What one process measures."""

    kind: str
    model: str
    variant: str = "plain"
    batch: int = 1
    share: float = 0.0
    start_file: str = ""
    tiny: bool = False

    @property
    def crop_size(self) -> tuple[int, int]:
        return (TINY_CROPS if self.tiny else CROP_SIZES)[self.model]


def bundle(cell: Cell, folder: Path, adapter: str | None = None) -> Bundle:
    speed = Speed(compile="compiled" in cell.variant, fp8="fp8" in cell.variant)
    source = ModelSource(path=folder / cell.model)
    lora = Adapter(source=ModelSource(path=folder / adapter)) if adapter else None
    return Bundle(
        expert="top",
        name=adapter or "bench",
        title="benchmark",
        status="benchmark",
        licence=Licence(name="none", commercial_use=True),
        backend=InpaintConfig(
            model=source,
            adapter=lora,
            prompt=PROMPT,
            speed=speed,
            max_batch_size=16,
            recipe=RECIPES[cell.model],
        ),
        crop=Crop(sizes=(cell.crop_size,), size_px=max(cell.crop_size)),
        product=Product(canvas=Canvas(size=(768, 768) if not cell.tiny else (64, 64))),
        guidance=GUIDANCE[cell.model],
    )


def request(cell: Cell, version: str, seed: int) -> ExpertRequest:
    width_px, height_px = cell.crop_size
    rng = np.random.default_rng(7)
    region = np.zeros((height_px, width_px), np.uint8)
    region[height_px // 4 : -height_px // 4, width_px // 4 : -width_px // 4] = 255
    side_px = 64 if cell.tiny else 768
    product = rng.integers(0, 255, (side_px, side_px, 4), dtype=np.uint8)
    product[..., 3] = 255
    return ExpertRequest(
        request_id=f"r{seed}",
        version=version,
        crop_hwc=rng.integers(0, 255, (height_px, width_px, 3), dtype=np.uint8),
        region_hw=region,
        silhouette_hw=None,
        landmarks=Landmarks(),
        product_hwc=product,
        product_landmarks=Landmarks(),
        seed=seed,
        num_steps=NUM_STEPS[cell.model],
        guidance=GUIDANCE[cell.model],
    )


def ignore_step(step: int, num_steps: int) -> None: ...


def load(bundles: tuple[Bundle, ...], share: float = 0.0) -> Backend:
    backend = create_backend(bundles, ReplicaPlan(name="bench", num_gpus=share))
    backend.load()
    return backend


def peak_gib() -> float:
    return torch.cuda.max_memory_reserved() / 2**30 if torch.cuda.is_available() else 0.0


def repeat(work: Callable[[int], Any], seconds: float) -> list[float]:
    """Seconds of each call, after two that warm up."""
    took_s: list[float] = []
    for seed in range(2):
        work(seed)
    until_s = time.perf_counter() + seconds
    while time.perf_counter() < until_s or len(took_s) < 3:
        started_s = time.perf_counter()
        work(len(took_s))
        took_s.append(time.perf_counter() - started_s)
    return took_s


def measure_time(cell: Cell, folder: Path, seconds: float) -> dict[str, Any]:
    if cell.variant == "diffusers":
        return measure_diffusers(cell, folder, seconds)
    started_s = time.perf_counter()
    made = bundle(cell, folder)
    backend = load((made,))
    load_s = time.perf_counter() - started_s

    def work(seed: int) -> Any:
        batch = [request(cell, made.version, seed + index) for index in range(cell.batch)]
        return backend.generate(batch, ignore_step)

    took_s = repeat(work, seconds)
    return {
        "s_per_image": statistics.median(took_s) / cell.batch,
        "peak_gib": peak_gib(),
        "load_s": load_s,
        "quality": compare(cell, folder, work(1)[0].images_nhwc),
    }


def compare(cell: Cell, folder: Path, images: Any) -> str:
    """Against what the plain variant painted with the same seed."""
    plain = folder / f"plain-{cell.model}.npy"
    if cell.variant == "plain":
        np.save(plain, images)
        return "-"
    psnr_db, ssim = measure_quality(np.load(plain), images)
    return f"{psnr_db:.1f} dB, SSIM {ssim:.4f}"


def measure_diffusers(cell: Cell, folder: Path, seconds: float) -> dict[str, Any]:
    """What a careful user writes: half precision, embeddings computed once, one call per image."""
    cuda = torch.cuda.is_available()
    started_s = time.perf_counter()
    dtype = torch.bfloat16 if cuda else torch.float32
    pipe: Any = getattr(diffusers, RECIPES[cell.model].pipeline).from_pretrained(
        folder / cell.model, dtype=dtype, use_safetensors=True, local_files_only=True
    )
    pipe.to("cuda" if cuda else "cpu")
    pipe.set_progress_bar_config(disable=True)
    load_s = time.perf_counter() - started_s
    arguments = stock_arguments(cell, pipe)

    def work(seed: int) -> Any:
        generator = torch.Generator().manual_seed(seed)
        return np.asarray(pipe(**arguments, generator=generator).images[0])

    with torch.inference_mode():
        took_s = repeat(work, seconds)
    return {
        "s_per_image": statistics.median(took_s),
        "peak_gib": peak_gib(),
        "load_s": load_s,
        "quality": "-",
    }


def stock_arguments(cell: Cell, pipe: Any) -> dict[str, Any]:
    asked = request(cell, "top@bench", 0)
    crop, region = Image.fromarray(asked.crop_hwc), Image.fromarray(asked.region_hw)
    product = Image.fromarray(asked.product_hwc[..., :3])
    # Embeddings by the pipeline's own encoder, under its own argument names; the encoders then go.
    recipe = create_recipe(RECIPES[cell.model])
    arguments: dict[str, Any] = {
        **recipe.encode_prompt(pipe, PROMPT, asked.guidance),
        "num_inference_steps": asked.num_steps,
        "guidance_scale": asked.guidance,
        "strength": 1.0,
    }
    if cell.model == "klein":
        return {**arguments, "image": crop, "mask_image": region, "image_reference": product}
    width_px, height_px = cell.crop_size
    both = Image.new("RGB", (2 * width_px, height_px), "white")
    both.paste(product.resize((width_px, width_px)), (0, 0))
    both.paste(crop, (width_px, 0))
    mask = Image.new("L", both.size)
    mask.paste(region, (width_px, 0))
    size = {"width": both.width, "height": both.height}
    return {**arguments, **size, "image": both, "mask_image": mask}


def measure_swap(cell: Cell, folder: Path, seconds: float) -> dict[str, Any]:
    """Pictures by one adapter, then by two in turn; the difference is the swap."""
    for seed, name in enumerate(("a", "b")):
        if not (folder / name).exists():
            build_klein_lora(folder / name, seed, "tiny" if cell.tiny else "real")
    bundles = tuple(bundle(cell, folder, name) for name in ("a", "b"))
    backend = load(bundles)

    def by(version: str, seed: int) -> None:
        backend.generate([request(cell, version, seed)], ignore_step)

    same_s = statistics.median(repeat(lambda seed: by("top@a", seed), seconds / 2))
    turns = ("top@a", "top@b")
    swapped_s = statistics.median(repeat(lambda seed: by(turns[seed % 2], seed), seconds / 2))
    return {
        "swap_ms": (swapped_s - same_s) * 1e3,
        "same_s": same_s,
        "swapped_s": swapped_s,
        "adapter_mib": max(backend.memory().adapter_bytes.values()) / 2**20,
    }


def wait_for_start(cell: Cell) -> None:
    Path(f"{cell.start_file}.{os.getpid()}").touch()
    while not Path(cell.start_file).exists():
        time.sleep(0.01)


def measure_packed(cell: Cell, folder: Path, seconds: float) -> dict[str, Any]:
    """One replica among others: its latencies, and how often it ran out of memory."""
    made = bundle(cell, folder)
    backend = load((made,), cell.share)
    for seed in range(2):
        backend.generate([request(cell, made.version, seed)], ignore_step)
    wait_for_start(cell)
    latencies_s: list[float] = []
    out_of_memory = 0
    started_s = time.perf_counter()
    while time.perf_counter() - started_s < seconds:
        call_s = time.perf_counter()
        try:
            backend.generate([request(cell, made.version, len(latencies_s))], ignore_step)
        except OutOfDeviceMemory:
            out_of_memory += 1
            continue
        latencies_s.append(time.perf_counter() - call_s)
    return {
        "latencies_s": latencies_s,
        "took_s": time.perf_counter() - started_s,
        "out_of_memory": out_of_memory,
    }


def measure_greedy(cell: Cell, folder: Path, seconds: float) -> dict[str, Any]:
    """A replica that takes ever larger batches and holds what it got: the neighbour to fear."""
    made = bundle(cell, folder)
    backend = load((made,), cell.share)
    wait_for_start(cell)
    until_s = time.perf_counter() + seconds
    held: list[torch.Tensor] = []
    largest = 0
    while time.perf_counter() < until_s:
        rows = min(MAX_GREEDY_ROWS, max(1, 2 * largest))
        batch = [request(cell, made.version, index) for index in range(rows)]
        try:
            backend.generate(batch, ignore_step)
            largest = max(largest, rows)
            if torch.cuda.is_available():
                held.append(torch.empty(4 * 2**30, dtype=torch.uint8, device="cuda"))
        except (OutOfDeviceMemory, torch.OutOfMemoryError):
            time.sleep(0.1)
    return {"largest_batch": largest, "held_gib": 4 * len(held)}


def describe(cell: Cell, folder: Path, seconds: float) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "driver": subprocess.check_output(query, text=True).split()[0] if cuda else "-",
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def build(cell: Cell, folder: Path, seconds: float) -> dict[str, Any]:
    BUILDERS[cell.model](folder / cell.model, cell.tiny)
    return {}


CELLS: dict[str, Callable[[Cell, Path, float], dict[str, Any]]] = {
    "about": describe,
    "build": build,
    "time": measure_time,
    "swap": measure_swap,
    "packed": measure_packed,
    "greedy": measure_greedy,
}
