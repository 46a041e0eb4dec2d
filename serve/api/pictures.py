"""Turns the pictures of a request that were given by URL into bytes."""

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from serve.api.forms import Picture, PictureUrl, TryOnForm
from serve.errors import DeadlineExceeded, FetchRefused, ImageTooLarge
from serve.schemas.tryon import TryOnOptions
from serve.telemetry import Stopwatch


class FetchPicture(Protocol):
    """Gets the bytes behind a URL, or refuses to."""

    async def __call__(self, url: str, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class TryOnBody:
    """One request's options and its encoded pictures."""

    options: TryOnOptions
    person: bytes
    product: bytes
    mask: bytes | None
    left_s: float
    """Of the request's time."""


async def fetch_pictures(
    form: TryOnForm,
    fetch: FetchPicture,
    timeout_s: float,
    watch: Stopwatch,
    now_s: Callable[[], float] = time.monotonic,
) -> TryOnBody:
    """Fetch what is given by URL, all at once; the first that fails ends the others.

    Raises:
        FetchRefused, ImageTooLarge: of one picture; the detail begins with its name.
        DeadlineExceeded: nothing is left of timeout_s.
    """
    sent = {"person": form.person, "product": form.product, "mask": form.mask}
    urls = {name: sent_as.url for name, sent_as in sent.items() if isinstance(sent_as, PictureUrl)}
    fetched: dict[str, bytes] = {}
    left_s = timeout_s
    if urls:
        started_s = now_s()
        with watch.stage("fetch"):
            fetched = await _fetch_in_time(urls, fetch, timeout_s)
        left_s -= now_s() - started_s

    def bytes_of(name: str, picture: Picture) -> bytes:
        return fetched[name] if isinstance(picture, PictureUrl) else picture

    return TryOnBody(
        options=form.options,
        person=bytes_of("person", form.person),
        product=bytes_of("product", form.product),
        mask=None if form.mask is None else bytes_of("mask", form.mask),
        left_s=left_s,
    )


async def _fetch_in_time(
    urls: Mapping[str, str], fetch: FetchPicture, timeout_s: float
) -> dict[str, bytes]:
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            tasks = {
                name: group.create_task(_fetch_named(name, url, fetch))
                for name, url in urls.items()
            }
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    except TimeoutError as exc:
        detail = f"not finished within {timeout_s:.0f} s"
        raise DeadlineExceeded(detail, retry_after_s=timeout_s) from exc
    return {name: task.result() for name, task in tasks.items()}


async def _fetch_named(name: str, url: str, fetch: FetchPicture) -> bytes:
    try:
        return await fetch(url)
    except (FetchRefused, ImageTooLarge) as exc:
        raise type(exc)(f"{name}: {exc.detail}", remedy=exc.remedy) from exc
