"""Turns the pictures of a request that were given by URL or by asset id into bytes."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from serve.api.forms import Picture, PictureAsset, PictureUrl, TryOnForm
from serve.errors import DeadlineExceeded, FetchRefused, ImageTooLarge, NotFound
from serve.imaging.spool import Encoded
from serve.observing.watch import Stopwatch
from serve.schemas.tryon import TryOnOptions


class FetchPicture(Protocol):
    """Gets the bytes behind a URL, or refuses to."""

    async def __call__(self, url: str, /) -> bytes: ...


LoadAsset = Callable[[str], Awaitable[bytes]]
"""Gets the bytes of an asset of whoever asks, or raises NotFound."""


async def know_no_asset(asset_id: str) -> bytes:
    """
    Raises:
        NotFound: always.
    """
    raise NotFound(f"There is no asset {asset_id[:40]}.")


@dataclass(frozen=True, slots=True)
class TryOnBody:
    """One request's options and its encoded pictures."""

    options: TryOnOptions
    person: Encoded
    product: Encoded
    mask: Encoded | None
    left_s: float
    """Of the request's time."""


async def fetch_pictures(
    form: TryOnForm,
    fetch: FetchPicture,
    timeout_s: float,
    watch: Stopwatch,
    now_s: Callable[[], float] = time.monotonic,
    *,
    load: LoadAsset = know_no_asset,
) -> TryOnBody:
    """Get what is given by URL or id, all at once; the first that fails ends the others.

    Args:
        load: the caller's own assets.

    Raises:
        FetchRefused, ImageTooLarge, NotFound: of one picture; the detail begins with its name.
        DeadlineExceeded: nothing is left of timeout_s.
    """
    sent = {"person": form.person, "product": form.product, "mask": form.mask}
    named = {
        name: partial(fetch, sent_as.url)
        if isinstance(sent_as, PictureUrl)
        else partial(load, sent_as.id)
        for name, sent_as in sent.items()
        if isinstance(sent_as, PictureUrl | PictureAsset)
    }
    fetched: dict[str, bytes] = {}
    left_s = timeout_s
    if named:
        started_s = now_s()
        with watch.stage("fetch"):
            fetched = await _fetch_in_time(named, timeout_s)
        left_s -= now_s() - started_s

    def file_of(name: str, picture: Picture) -> Encoded:
        return fetched[name] if isinstance(picture, PictureUrl | PictureAsset) else picture

    return TryOnBody(
        options=form.options,
        person=file_of("person", form.person),
        product=file_of("product", form.product),
        mask=None if form.mask is None else file_of("mask", form.mask),
        left_s=left_s,
    )


async def _fetch_in_time(
    named: Mapping[str, Callable[[], Awaitable[bytes]]], timeout_s: float
) -> dict[str, bytes]:
    try:
        async with asyncio.timeout(timeout_s), asyncio.TaskGroup() as group:
            tasks = {
                name: group.create_task(_fetch_named(name, get)) for name, get in named.items()
            }
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed
    except TimeoutError as exc:
        detail = f"not finished within {timeout_s:.0f} s"
        raise DeadlineExceeded(detail, retry_after_s=timeout_s) from exc
    return {name: task.result() for name, task in tasks.items()}


async def _fetch_named(name: str, get: Callable[[], Awaitable[bytes]]) -> bytes:
    try:
        return await get()
    except (FetchRefused, ImageTooLarge, NotFound) as exc:
        raise type(exc)(f"{name}: {exc.detail}", remedy=exc.remedy) from exc
