"""Matting networks of transformers: pictures in, the person's opacity out."""

import json
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch.nn.functional import interpolate
from transformers import AutoModelForImageMatting

from deployments.maskers import MattingMasker, ParsingMasker
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.matting.trimap import NOBODY, PERSON, draw_trimap
from deployments.segmenters.network import Network, load_network
from deployments.segmenters.parsing.parser import Parser, load_parser
from deployments.segmenters.preprocessing import Preprocessing, read_preprocessing
from serve.errors import BundleInvalid
from serve.messages import UInt8Array

PAD_TO_PX = 32
"""Source: transformers 5.23.0, VitMatteImageProcessor.size_divisor."""
VITMATTE = "vitmatte"


class Matter(Protocol):
    """Finds the person's opacity in pictures."""

    @property
    def digests(self) -> list[str]:
        """Of the networks: names what was served."""

    def matte(self, images: list[UInt8Array]) -> list[UInt8Array]:
        """Opacity (H, W) of the person in each picture: 255 on it, 0 off it."""


class DirectMatter:
    """A network that needs nothing but the picture, at one size of its own."""

    def __init__(self, network: Network, preprocessing: Preprocessing):
        self._network = network
        self._preprocessing = preprocessing

    @property
    def digests(self) -> list[str]:
        return [self._network.digest]

    def matte(self, images: list[UInt8Array]) -> list[UInt8Array]:
        with self._network.running():
            inputs = self._network.put(self._preprocessing.apply(images))
            alphas_n1hw = self._network.model(pixel_values=inputs).alphas.float()
            sized = (
                interpolate(
                    alphas_n1hw[index : index + 1],
                    size=image.shape[:2],
                    mode="bilinear",
                    align_corners=False,
                )
                for index, image in enumerate(images)
            )
            return [_opacity(alpha[0, 0]) for alpha in sized]


class TrimapMatter:
    """VitMatte: decides the pixels that a parser leaves unsure, at the picture's own size."""

    def __init__(self, network: Network, preprocessing: Preprocessing, parser: Parser):
        self._network = network
        self._preprocessing = preprocessing
        self._parser = parser

    @property
    def digests(self) -> list[str]:
        names = {name: part.name for name, part in self._parser.labels.names.items()}
        return [self._network.digest, self._parser.digest, json.dumps(names, sort_keys=True)]

    def matte(self, images: list[UInt8Array]) -> list[UInt8Array]:
        trimaps = [draw_trimap(parsed.parts_hw) for parsed in self._parser.parse(images)]
        mattes: dict[int, UInt8Array] = {}
        for indices in _by_padded_size(images).values():
            with self._network.running():
                inputs = np.stack([self._input(images[i], trimaps[i]) for i in indices])
                alphas_n1hw = self._network.model(pixel_values=self._network.put(inputs)).alphas
                opacities = [_opacity(alpha[0]) for alpha in alphas_n1hw.float()]
            for index, opacity in zip(indices, opacities, strict=True):
                height, width = trimaps[index].shape
                mattes[index] = _settled(opacity[:height, :width], trimaps[index])
        return [mattes[index] for index in range(len(images))]

    def _input(self, image_hwc: UInt8Array, trimap_hw: UInt8Array) -> np.ndarray:
        """(4, H, W): the picture and its trimap in [0, 1], padded with zeros as in training."""
        picture = self._preprocessing.normalise([image_hwc])[0]
        known = trimap_hw[None].astype(np.float32) / np.float32(255)
        height, width = trimap_hw.shape
        pad = ((0, 0), (0, -height % PAD_TO_PX), (0, -width % PAD_TO_PX))
        return np.pad(np.concatenate([picture, known]), pad)


def load_matter(masker: MattingMasker, plan: SegmenterPlan) -> Matter:
    """Load the network that a masker names, and the parser beside it where one is needed.

    Raises:
        BundleInvalid: it cannot be loaded, or a trimap is needed and nothing makes it.
    """
    network = load_network(AutoModelForImageMatting, masker.model, plan, "a matting network")
    preprocessing = read_preprocessing(network.folder)
    if network.config.model_type != VITMATTE:
        return DirectMatter(network, preprocessing)
    if masker.parser is None:
        raise BundleInvalid(
            f"{network.label} is a VitMatte, which decides between person and background only "
            "where a trimap leaves it open",
            remedy="name a human parser under masker.parser; the trimap is made from its labels",
        )
    return TrimapMatter(
        network, preprocessing, load_parser(ParsingMasker(model=masker.parser), plan)
    )


def _by_padded_size(images: list[UInt8Array]) -> Mapping[tuple[int, int], list[int]]:
    """Which pictures can share a pass: padded further, a picture would be seen otherwise."""
    groups: dict[tuple[int, int], list[int]] = {}
    for index, image in enumerate(images):
        height, width = image.shape[:2]
        size = height + -height % PAD_TO_PX, width + -width % PAD_TO_PX
        groups.setdefault(size, []).append(index)
    return groups


def _opacity(alpha_hw: torch.Tensor) -> UInt8Array:
    return np.asarray(np.rint(255 * alpha_hw.clamp(0, 1).cpu().numpy()), np.uint8)


def _settled(opacity_hw: UInt8Array, trimap_hw: UInt8Array) -> UInt8Array:
    """What the trimap is sure of stays as it says."""
    settled = np.where(trimap_hw == PERSON, 255, opacity_hw)
    return np.where(trimap_hw == NOBODY, 0, settled).astype(np.uint8)
