"""LitServe's echo of a multipart upload; run in its own environment."""

import sys

import litserve
from starlette.datastructures import FormData
from starlette.requests import Request
from starlette.responses import Response


class Echo(litserve.LitAPI):
    """As its documentation does with pictures: the upload is read where the request is decoded."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request: Request) -> bytes:
        assert isinstance(request, FormData)
        data: bytes = request["person"].file.read()  # type: ignore[union-attr]
        return data

    def predict(self, data: bytes) -> bytes:
        return data

    def encode_response(self, output: bytes) -> Response:
        return Response(output, media_type="image/jpeg")


if __name__ == "__main__":
    server = litserve.LitServer(
        Echo(api_path="/echo"), accelerator="cpu", workers_per_device=1, timeout=120
    )
    server.run(
        host="127.0.0.1",
        port=int(sys.argv[1]),
        num_api_servers=1,
        generate_client_file=False,
        log_level="error",
        access_log=False,
    )
