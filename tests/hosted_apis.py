"""FASHN and OpenAI image edits on loopback: the contract as their documentation states it."""

import base64
import io
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from PIL import Image, ImageOps
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

KEY = "secret-key"


def png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@dataclass
class Failures:
    """Answers to give before the real ones, per path."""

    queued: dict[str, deque[Response]] = field(default_factory=dict)

    def add(self, path: str, *responses: Response) -> None:
        self.queued.setdefault(path, deque()).extend(responses)

    def next(self, path: str) -> Response | None:
        waiting = self.queued.get(path)
        return waiting.popleft() if waiting else None


class HostedApis:
    """Both APIs; remembers what it was sent."""

    def __init__(self) -> None:
        self.failures = Failures()
        self.runs: list[dict[str, Any]] = []
        self.edits: list[dict[str, Any]] = []
        self.polls_until_done = 2
        self.outcome: dict[str, Any] = {"status": "completed"}
        self.num_polls = 0
        self.app = Starlette(
            routes=[
                Route("/v1/run", self.run, methods=["POST"]),
                Route("/v1/status/{id}", self.status),
                Route("/v1/images/edits", self.edit, methods=["POST"]),
            ]
        )

    async def run(self, request: Request) -> Response:
        if (failure := self.failures.next("run")) is not None:
            return failure
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": "UnauthorizedAccess", "message": "no such key"}, 401)
        self.runs.append(await request.json())
        self.num_polls = 0
        return JSONResponse({"id": f"p{len(self.runs) - 1}", "error": None})

    async def status(self, request: Request) -> Response:
        if (failure := self.failures.next("status")) is not None:
            return failure
        self.num_polls += 1
        prediction = request.path_params["id"]
        if self.num_polls < self.polls_until_done:
            return JSONResponse({"id": prediction, "status": "processing", "error": None})
        answer = {"id": prediction, "error": None, **self.outcome}
        if answer["status"] == "completed" and "output" not in answer:
            inputs = self.runs[int(prediction[1:])]["inputs"]
            data = base64.b64decode(inputs["model_image"].partition(",")[2])
            inverted = png(ImageOps.invert(Image.open(io.BytesIO(data)).convert("RGB")))
            count = inputs.get("num_samples", 1)
            answer["output"] = [f"data:image/png;base64,{inverted}"] * count
        return JSONResponse(answer, headers={"x-fashn-credits-used": "1"})

    async def edit(self, request: Request) -> Response:
        if (failure := self.failures.next("edits")) is not None:
            return failure
        form = await request.form()
        images = [await upload.read() for upload in form.getlist("image[]")]  # type: ignore[union-attr]
        mask = Image.open(io.BytesIO(await form["mask"].read()))  # type: ignore[union-attr]
        person = Image.open(io.BytesIO(images[0])).convert("RGB")
        self.edits.append({"form": form, "person": person, "mask": mask, "count": len(images)})
        # Repaints all of it, as the real one may.
        painted = ImageOps.invert(person)
        many = [{"b64_json": png(painted)} for _ in range(int(str(form["n"])))]
        return JSONResponse({"created": 1, "data": many})


@contextmanager
def serve_apis() -> Iterator[tuple[str, HostedApis]]:
    """Both APIs on a free port of loopback, over real HTTP."""
    apis = HostedApis()
    config = uvicorn.Config(apis.app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    started = threading.Event()
    startup = server.startup

    async def announce(sockets: Any = None) -> None:
        await startup(sockets)
        started.set()

    server.startup = announce  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(20)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", apis
    finally:
        server.should_exit = True
        thread.join(20)


def picture(height_px: int, width_px: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A smooth gradient: survives resampling."""
    y, x = np.mgrid[0:height_px, 0:width_px]
    levels = np.stack([x * 200 // width_px, y * 200 // height_px, x * 0 + 40], -1)
    return levels.astype(np.uint8)
