"""FASHN: `POST /v1/run`, then `GET /v1/status/{id}` until it ends.

Source: docs.fashn.ai and fashn-AI/fashn-python-sdk, read 2026-03.
"""

import asyncio
from typing import Any

import httpx2

from deployments.backends.hosted.calls import Caller, Refused
from deployments.backends.hosted.pictures import (
    decode_answer,
    decode_base64,
    fit_answer,
    flatten,
    to_data_uri,
)
from deployments.backends.hosted.provider import Painted
from deployments.recipes import FashnProvider, HostedConfig
from serve.errors import (
    BundleInvalid,
    ContentRefused,
    InvalidImage,
    Sm4llError,
    SubjectNotFound,
    UpstreamFailed,
)
from serve.messages import Expert, ExpertRequest, UInt8Array, UpstreamCost

CATEGORIES: dict[Expert, str] = {"top": "tops", "bottom": "bottoms", "dress": "one-pieces"}
"""What tryon-v1.6 knows."""
TRYON_MAX_EXPERTS: tuple[Expert, ...] = ("eye", "shoes", "top", "bottom", "dress")
CREDITS_PER_IMAGE = {"tryon-v1.6": 1.0, "tryon-max": 4.0}
PENDING = ("starting", "in_queue", "processing")
# `error.name` of a failed prediction that the caller can do something about.
RUNTIME_ERRORS: dict[str, type[Sm4llError]] = {
    "ImageLoadError": InvalidImage,
    "InputValidationError": InvalidImage,
    "ContentModerationError": ContentRefused,
    "PoseError": SubjectNotFound,
}
ACCOUNT_ERRORS = ("OutOfCredits",)


class Fashn:
    """Speaks FASHN's API for one expert."""

    name = "FASHN"

    def __init__(self, expert: Expert, config: HostedConfig, provider: FashnProvider, key: str):
        self._expert = expert
        self._provider = provider
        self._poll_s = config.poll_s
        self._prompt = config.prompt
        self._key = key
        self._caller = Caller(self.name, config.max_attempts, _is_final, config.poll_s)
        known = CATEGORIES if provider.model == "tryon-v1.6" else TRYON_MAX_EXPERTS
        if expert not in known:
            raise BundleInvalid(
                f"FASHN's {provider.model} does not do {expert}",
                remedy=f"it does {', '.join(known)}",
            )

    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._key}"}

    async def paint(self, http: httpx2.AsyncClient, request: ExpertRequest) -> Painted:
        payloads = self._payloads(request)
        answers = await asyncio.gather(*(self._run(http, payload) for payload in payloads))
        height_px, width_px = request.crop_hwc.shape[:2]
        images = tuple(
            fit_answer(_read_output(output), width_px, height_px, self.name)
            for outputs, _ in answers
            for output in outputs
        )
        credits = sum(used for _, used in answers)
        usd = credits * self._provider.usd_per_credit
        return Painted(images, UpstreamCost("fashn", usd, credits))

    def _payloads(self, request: ExpertRequest) -> list[dict[str, Any]]:
        """tryon-v1.6 makes several samples in one run, tryon-max one."""
        person = to_data_uri(request.crop_hwc)
        product = to_data_uri(flatten(request.product_hwc))
        common = {"model_image": person, "output_format": "png", "return_base64": True}
        if self._provider.model == "tryon-v1.6":
            inputs = {
                **common,
                "garment_image": product,
                "category": CATEGORIES[self._expert],
                "mode": self._provider.mode,
                "seed": request.seed,
                "num_samples": request.num_images,
            }
            return [{"model_name": "tryon-v1.6", "inputs": inputs}]
        words = {"prompt": self._prompt} if self._prompt else {}
        return [
            {
                "model_name": "tryon-max",
                "inputs": {
                    **common,
                    **words,
                    "product_image": product,
                    "seed": request.seed + index,
                },
            }
            for index in range(request.num_images)
        ]

    async def _run(
        self, http: httpx2.AsyncClient, payload: dict[str, Any]
    ) -> tuple[list[str], float]:
        """Outputs and credits of one prediction."""
        try:
            started = await self._caller.send(lambda: http.post("/v1/run", json=payload))
            prediction_id = str(started.json()["id"])
            while True:
                await asyncio.sleep(self._poll_s)
                answer = await self._caller.send(
                    lambda: http.get(f"/v1/status/{prediction_id}"), is_repeatable=True
                )
                status = answer.json()
                if status["status"] not in PENDING:
                    break
        except Refused as exc:
            raise _read_refusal(exc) from exc
        except (KeyError, ValueError, TypeError) as exc:
            raise UpstreamFailed(f"FASHN answered something unknown: {exc!r}") from exc
        if status["status"] != "completed":
            raise _read_failure(status)
        outputs = list(status.get("output") or ())
        if not outputs:
            raise UpstreamFailed("FASHN completed without a picture")
        asked = payload["inputs"].get("num_samples", 1)
        charged = answer.headers.get("x-fashn-credits-used")
        used = float(charged) if charged else CREDITS_PER_IMAGE[self._provider.model] * asked
        return outputs, used


def _read_output(output: str) -> UInt8Array:
    if not output.startswith("data:"):
        raise UpstreamFailed("FASHN answered an address although base64 was asked for")
    return decode_answer(decode_base64(output, Fashn.name), Fashn.name)


def _is_final(refused: Refused) -> bool:
    return refused.body.get("error") in ACCOUNT_ERRORS


def _read_refusal(refused: Refused) -> Sm4llError:
    error = str(refused.body.get("error") or refused.status)
    message = str(refused.body.get("message") or "")
    if error == "OutOfCredits":
        remedy = "buy credits, or send traffic to another version"
        return UpstreamFailed("the FASHN account has no credits left", remedy=remedy)
    if refused.status == 401:
        return UpstreamFailed("FASHN does not know our key", remedy="set SM4LL_FASHN_API_KEY")
    return UpstreamFailed(f"FASHN refused: {error}: {message}")


def _read_failure(status: dict[str, Any]) -> Sm4llError:
    error = status.get("error") or {}
    name, message = str(error.get("name") or status["status"]), str(error.get("message") or "")
    kind = RUNTIME_ERRORS.get(name, UpstreamFailed)
    return kind(f"FASHN: {name}: {message}")
