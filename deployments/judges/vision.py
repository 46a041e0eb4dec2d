"""A vision network of transformers as a function from pictures to directions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel

from deployments.judge_models import VisionModel
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.network import Network, load_network
from deployments.segmenters.preprocessing import Preprocessing, read_preprocessing
from serve.config import WeightsConfig
from serve.errors import BundleInvalid
from serve.messages import UInt8Array

_WHITE = (255, 255, 255)


class Embedder:
    """One loaded network."""

    def __init__(self, network: Network, preprocessing: Preprocessing, pooling: str):
        self._network = network
        self._preprocessing = preprocessing
        self._pooling = pooling

    def embed(self, images: Sequence[UInt8Array]) -> NDArray[np.float32]:
        """Pictures (h, w, 3) of any size, whole and with their aspect kept.

        Returns:
            (N, D) float32, each of length 1.
        """
        squares = [_make_square(image) for image in images]
        with self._network.running():
            pixels = self._network.put(self._preprocessing.apply(squares))
            vectors = self._pool(self._answer(pixels)).float()
            unit = torch.nn.functional.normalize(vectors.flatten(1), dim=1)
        embedded: NDArray[np.float32] = unit.cpu().numpy()
        return embedded

    def _answer(self, pixels: torch.Tensor) -> Any:
        model = self._network.model
        # CLIP and its kin read text too; only their picture half is asked.
        ask = getattr(model, "get_image_features", model)
        return ask(pixel_values=pixels)

    def _pool(self, answer: Any) -> torch.Tensor:
        pooled = getattr(answer, "pooler_output", None)
        if self._pooling == "pooled" or (self._pooling == "auto" and pooled is not None):
            if pooled is None:
                raise BundleInvalid(
                    f"{self._network.label} pools nothing itself",
                    remedy="set pooling: mean, or pooling: first",
                )
            return pooled
        hidden: torch.Tensor = answer.last_hidden_state
        if hidden.dim() == 4:  # (N, C, h, w): convolutions have places instead of tokens
            hidden = hidden.flatten(2).transpose(1, 2)
        return hidden[:, 0] if self._pooling == "first" else hidden.mean(dim=1)


def load_embedder(model: VisionModel, home: Path, weights: WeightsConfig) -> Embedder:
    """
    Raises:
        BundleInvalid: the weights are not there, incomplete or not safetensors, the network needs
            code of its own, or what it answers cannot be pooled as asked.
    """
    plan = SegmenterPlan(0, home, weights)
    network = load_network(AutoModel, model.source, plan, "a vision model")
    embedder = Embedder(network, read_preprocessing(network.folder), model.pooling)
    embedder.embed([np.zeros((8, 8, 3), np.uint8)])  # what cannot work is known at the start
    return embedder


def _make_square(image_hwc: UInt8Array) -> UInt8Array:
    """On white, centred: networks want squares, and a squeezed shoe is another shoe."""
    height, width = image_hwc.shape[:2]
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    square: Any = cv2.copyMakeBorder(
        image_hwc,
        *(top, side - height - top, left, side - width - left),
        borderType=cv2.BORDER_CONSTANT,
        value=_WHITE,
    )
    return square  # type: ignore[no-any-return]
