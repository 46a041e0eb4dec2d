"""Writes a running job's steps and its preview as events, no faster than a person can watch."""

import asyncio
import base64
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import cv2
import numpy as np

from serve.errors import StoreUnavailable
from serve.messages import UInt8Array

WriteEvent = Callable[[str, dict[str, Any]], Awaitable[object]]

MIN_INTERVAL_S = 0.5
PREVIEW_SIDE_PX = 256
PREVIEW_QUALITY = 70


class ProgressWriter:
    """Only the newest step is worth writing; the last one and the preview always are.

    Args:
        write: one event; raises Conflict once the job is somebody else's.
    """

    def __init__(self, write: WriteEvent, interval_s: float = MIN_INTERVAL_S):
        self._write = write
        self._interval_s = interval_s
        self._step: tuple[int, int] | None = None
        self._painted: UInt8Array | None = None
        self._is_closed = False
        self._changed = asyncio.Event()
        self._urgent = asyncio.Event()

    def on_step(self, step: int, num_steps: int) -> None:
        self._step = (step, num_steps)
        self._changed.set()

    def on_painted(self, images_nhwc: UInt8Array) -> None:
        self._painted = images_nhwc[0]
        self._changed.set()
        self._urgent.set()

    def close(self) -> None:
        """Nothing more will come: `run` returns when the rest is written."""
        self._is_closed = True
        self._changed.set()
        self._urgent.set()

    async def run(self) -> None:
        """
        Raises:
            Conflict: the job is somebody else's.
        """
        while True:
            await self._changed.wait()
            self._changed.clear()
            self._urgent.clear()
            is_last = self._is_closed
            await self._flush()
            if is_last:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._interval_s):
                    await self._urgent.wait()

    async def _flush(self) -> None:
        step, self._step = self._step, None
        painted, self._painted = self._painted, None
        if step is not None:
            await self._tell("step", {"i": step[0], "n": step[1]})
        if painted is not None and painted.size:
            uri = await asyncio.to_thread(encode_preview, painted)
            await self._tell("preview", {"image": uri})

    async def _tell(self, kind: str, data: dict[str, Any]) -> None:
        try:
            await self._write(kind, data)
        except StoreUnavailable:
            return  # a step that nobody hears of is no reason to stop


def encode_preview(image_hwc: UInt8Array) -> str:
    """A JPEG of at most 256 pixels, as a data URI."""
    height_px, width_px = image_hwc.shape[:2]
    scale = min(1.0, PREVIEW_SIDE_PX / max(height_px, width_px))
    size = max(1, round(width_px * scale)), max(1, round(height_px * scale))
    small_hwc = cv2.resize(np.ascontiguousarray(image_hwc), size, interpolation=cv2.INTER_AREA)
    bgr_hwc = cv2.cvtColor(small_hwc, cv2.COLOR_RGB2BGR) if small_hwc.ndim == 3 else small_hwc
    _, file = cv2.imencode(".jpg", bgr_hwc, [cv2.IMWRITE_JPEG_QUALITY, PREVIEW_QUALITY])
    return f"data:image/jpeg;base64,{base64.b64encode(file.tobytes()).decode()}"
