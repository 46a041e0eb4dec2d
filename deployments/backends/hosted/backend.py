"""Paints by a third party's API. The crop, its region and the product leave this cluster."""

import asyncio
import time
from collections.abc import Callable, Sequence

import httpx2
import numpy as np
from pydantic import SecretStr

from deployments.backends.base import Memory, OnStep
from deployments.backends.hosted.fashn import Fashn
from deployments.backends.hosted.openai import OpenAiEdits
from deployments.backends.hosted.provider import Painted, Provider
from deployments.bundle import Bundle
from deployments.recipes import FashnProvider, HostedConfig
from serve.errors import BundleInvalid, DeadlineExceeded, UpstreamFailed
from serve.messages import ExpertReply, ExpertRequest
from serve.settings import Settings

# How soon a caller who left is noticed while the API works.
WATCH_S = 0.2
CONNECT_TIMEOUT_S = 5.0


class HostedBackend:
    """One request at a time; stops waiting when its caller stops."""

    kind = "hosted"
    is_preview = False

    def __init__(
        self, bundle: Bundle, settings: Settings, clock_s: Callable[[], float] = time.monotonic
    ):
        assert isinstance(bundle.backend, HostedConfig), "the registry creates it for hosted only"
        self._bundle = bundle
        self._config = bundle.backend
        self._settings = settings
        self._clock_s = clock_s
        self._provider: Provider | None = None

    def load(self) -> None:
        provider = self._config.provider
        if isinstance(provider, FashnProvider):
            key = _require_key(self._settings.fashn_api_key, "SM4LL_FASHN_API_KEY")
            self._provider = Fashn(self._bundle.expert, self._config, provider, key)
        else:
            key = _require_key(self._settings.openai_api_key, "SM4LL_OPENAI_API_KEY")
            self._provider = OpenAiEdits(self._config, provider, key)

    def generate(self, batch: Sequence[ExpertRequest], on_step: OnStep) -> list[ExpertReply]:
        return [self._generate_one(request, on_step) for request in batch]

    def _generate_one(self, request: ExpertRequest, on_step: OnStep) -> ExpertReply:
        assert self._provider is not None, "load() comes before generate()"
        started_s = self._clock_s()
        painted = asyncio.run(self._watched(self._provider, request, on_step))
        if len(painted.images) != request.num_images:
            asked = request.num_images
            raise UpstreamFailed(
                f"{self._provider.name} answered {len(painted.images)} pictures, not {asked}"
            )
        return ExpertReply(
            images_nhwc=np.stack(painted.images),
            alpha_nhw=None,
            version=self._bundle.version,
            generate_ms=(self._clock_s() - started_s) * 1e3,
            cost=painted.cost,
            notes=(f"painted by {self._provider.name}, outside this cluster", *painted.notes),
        )

    async def _watched(
        self, provider: Provider, request: ExpertRequest, on_step: OnStep
    ) -> Painted:
        """Paint, and look every WATCH_S whether anybody still wants it."""
        task = asyncio.create_task(self._paint(provider, request))
        waited = 0
        try:
            while not (await asyncio.wait({task}, timeout=WATCH_S))[0]:
                waited += 1
                on_step(waited, round(self._config.timeout_s / WATCH_S))
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _paint(self, provider: Provider, request: ExpertRequest) -> Painted:
        timeout_s = self._config.timeout_s
        timeout = httpx2.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)
        base_url = self._config.provider.base_url
        async with httpx2.AsyncClient(
            base_url=base_url, headers=provider.headers(), timeout=timeout
        ) as http:
            try:
                async with asyncio.timeout(timeout_s):
                    return await provider.paint(http, request)
            except TimeoutError as exc:
                raise DeadlineExceeded(
                    f"{provider.name} did not finish within {timeout_s:.0f} s",
                    retry_after_s=timeout_s,
                ) from exc

    def unload(self) -> None:
        """Holds nothing."""

    def memory(self) -> Memory:
        return Memory()


def _require_key(key: SecretStr | None, variable: str) -> str:
    if key is None:
        raise BundleInvalid(f"{variable} is not set", remedy=f"export {variable}=...")
    return key.get_secret_value()
