"""The model hub's calls that a download takes, for one repository at one commit, over real HTTP."""

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

REVISION = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "model_index.json": b"{}",
    "unet/model.safetensors": b"unet",
    "unet/model.fp16.safetensors": b"half",
    "unet/model.bin": b"pickle",
    "tokenizer/merges.txt": b"a b",
    "whole.safetensors": b"everything once more",
    "README.md": b"# name",
}


class Hub:
    """What it holds, what it was asked, and whom it refuses."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.asked: list[str] = []
        self.is_gated = False
        """Its list is shown to everybody, its files to nobody."""
        self.broken: set[str] = set()
        """Files that it answers with 404 although they are in the list."""

    @property
    def fetched(self) -> list[str]:
        """Files whose bytes were asked for, in order."""
        return [path.partition(f"{REVISION}/")[2] for path in self.asked if path[:4] == "GET "]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        hub = self.hub
        if self.path.startswith(f"/api/models/owner/name/tree/{REVISION}"):
            hub.asked.append(self.path)
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": "0"}
                for name, data in hub.files.items()
            ]
            self._answer(json.dumps(entries).encode())
            return
        resolved = f"/owner/name/resolve/{REVISION}/"
        hub.asked.append(f"{self.command} {self.path}" if resolved in self.path else self.path)
        name = self.path.partition(resolved)[2]
        if name and hub.is_gated:
            self.send_response(401)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif name in hub.files and name not in hub.broken:
            self._answer(hub.files[name])
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", REVISION)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    use_hub(monkeypatch, server.server_port)
    yield hub
    server.shutdown()
    thread.join()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    """Have the hub's library ask that port instead."""
    from huggingface_hub import constants  # half a second, which other tests do not need

    url = f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = f"{url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
