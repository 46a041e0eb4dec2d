"""OpenAI image edits: `POST /v1/images/edits`, multipart, mask with alpha 0 where it may paint.

Source: the openai-python SDK and API reference, read 2026-09. The mask is a hint there, not a
border: paste-back makes it one.
"""

from dataclasses import dataclass

import cv2
import httpx2
import numpy as np

from deployments.backends.hosted.calls import Caller, Refused
from deployments.backends.hosted.pictures import (
    decode_answer,
    decode_base64,
    encode_png,
    fit_answer,
    flatten,
    resize,
)
from deployments.backends.hosted.provider import Painted
from deployments.recipes import HostedConfig, OpenAiProvider
from serve.errors import BundleInvalid, ContentRefused, Sm4llError, UpstreamFailed
from serve.messages import ExpertRequest, UInt8Array, UpstreamCost

SIZES = ((1024, 1024), (1536, 1024), (1024, 1536))
"""Width and height of what it makes."""
MODERATION_CODES = ("moderation_blocked", "content_policy_violation")


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the crop lies in a picture of a size that the API makes."""

    width_px: int
    height_px: int
    left_px: int
    top_px: int
    inner_w_px: int
    inner_h_px: int

    def put(self, crop_hwc: UInt8Array) -> UInt8Array:
        """The crop in the frame, its border stretched outwards: nothing is squeezed."""
        inner = resize(crop_hwc, self.inner_w_px, self.inner_h_px)
        right_px = self.width_px - self.left_px - self.inner_w_px
        bottom_px = self.height_px - self.top_px - self.inner_h_px
        framed = cv2.copyMakeBorder(
            inner, self.top_px, bottom_px, self.left_px, right_px, cv2.BORDER_REPLICATE
        )
        return np.asarray(framed, np.uint8)

    def cut(self, picture_hwc: UInt8Array) -> UInt8Array:
        """The crop's part of a picture of the frame's size."""
        rows = slice(self.top_px, self.top_px + self.inner_h_px)
        return picture_hwc[rows, self.left_px : self.left_px + self.inner_w_px]


def choose_frame(crop_w_px: int, crop_h_px: int) -> Frame:
    """The size that wastes least, with the crop centred in it."""

    def used(size: tuple[int, int]) -> float:
        scale = min(size[0] / crop_w_px, size[1] / crop_h_px)
        return scale * scale * crop_w_px * crop_h_px / (size[0] * size[1])

    width_px, height_px = max(SIZES, key=used)
    scale = min(width_px / crop_w_px, height_px / crop_h_px)
    inner_w_px = min(width_px, round(crop_w_px * scale))
    inner_h_px = min(height_px, round(crop_h_px * scale))
    left_px, top_px = (width_px - inner_w_px) // 2, (height_px - inner_h_px) // 2
    return Frame(width_px, height_px, left_px, top_px, inner_w_px, inner_h_px)


class OpenAiEdits:
    """Speaks OpenAI's image edits."""

    name = "OpenAI"

    def __init__(self, config: HostedConfig, provider: OpenAiProvider, key: str):
        if not config.prompt:
            raise BundleInvalid("OpenAI image edits need a prompt", remedy="set backend.prompt")
        self._prompt = config.prompt
        self._provider = provider
        self._key = key
        self._caller = Caller(self.name, config.max_attempts, _is_final, config.poll_s)

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"}

    async def paint(self, http: httpx2.AsyncClient, request: ExpertRequest) -> Painted:
        height_px, width_px = request.crop_hwc.shape[:2]
        frame = choose_frame(width_px, height_px)
        files = _files(frame, request)
        fields = {
            "model": self._provider.model,
            "prompt": self._prompt,
            "n": str(request.num_images),
            "size": f"{frame.width_px}x{frame.height_px}",
            "input_fidelity": self._provider.input_fidelity,
            "output_format": "png",
        }
        try:
            answer = await self._caller.send(
                lambda: http.post("/v1/images/edits", data=fields, files=files)
            )
            texts = [str(item["b64_json"]) for item in answer.json()["data"]]
        except Refused as exc:
            raise _read_refusal(exc) from exc
        except (KeyError, ValueError, TypeError) as exc:
            raise UpstreamFailed(f"OpenAI answered something unknown: {exc!r}") from exc
        images = tuple(self._read(text, frame, width_px, height_px) for text in texts)
        cost = UpstreamCost("openai", self._provider.usd_per_image * len(images))
        return Painted(images, cost, ("OpenAI takes no seed: a repeat gives another picture",))

    def _read(self, text: str, frame: Frame, width_px: int, height_px: int) -> UInt8Array:
        picture = decode_answer(decode_base64(text, self.name), self.name)
        framed = fit_answer(picture, frame.width_px, frame.height_px, self.name)
        return resize(frame.cut(framed), width_px, height_px)


def _files(frame: Frame, request: ExpertRequest) -> list[tuple[str, tuple[str, bytes, str]]]:
    crop = frame.put(request.crop_hwc)
    outside = np.full((frame.height_px, frame.width_px), 255, np.uint8)
    region = resize(request.region_hw, frame.inner_w_px, frame.inner_h_px)
    frame.cut(outside)[region > 127] = 0
    mask = np.dstack([crop, outside])
    product = flatten(request.product_hwc)
    return [
        ("image[]", ("person.png", encode_png(crop), "image/png")),
        ("image[]", ("product.png", encode_png(product), "image/png")),
        ("mask", ("mask.png", encode_png(mask), "image/png")),
    ]


def _error(refused: Refused) -> dict[str, object]:
    error = refused.body.get("error")
    return error if isinstance(error, dict) else {}


def _is_final(refused: Refused) -> bool:
    return _error(refused).get("code") == "insufficient_quota"


def _read_refusal(refused: Refused) -> Sm4llError:
    error = _error(refused)
    code, message = error.get("code"), str(error.get("message") or refused)
    if code in MODERATION_CODES:
        return ContentRefused(f"OpenAI: {message}")
    if code == "insufficient_quota":
        remedy = "raise its budget, or send traffic to another version"
        return UpstreamFailed("the OpenAI account has no budget left", remedy=remedy)
    if refused.status == 401:
        return UpstreamFailed("OpenAI does not know our key", remedy="set SM4LL_OPENAI_API_KEY")
    return UpstreamFailed(f"OpenAI refused: {refused.status}: {message}")
