"""A human parser of transformers: pictures in, parts and a soft silhouette out."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from torch.nn.functional import interpolate
from transformers import AutoModelForSemanticSegmentation

from deployments.maskers import ParsingMasker
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.network import Network, load_network
from deployments.segmenters.parsing.figure import tidy_parts
from deployments.segmenters.parsing.labels import LabelMap, Part, map_labels, mark
from deployments.segmenters.preprocessing import Preprocessing, read_preprocessing
from serve.messages import UInt8Array

SURE = (0.1, 0.9)
"""Probability of a person below and above which the silhouette is none or all."""
GARMENTS = (
    *(Part.TOP, Part.DRESS, Part.SKIRT, Part.PANTS, Part.BELT, Part.SCARF, Part.BAG, Part.SHOE),
    Part.HAT,
)


@dataclass(frozen=True, slots=True)
class Parsed:
    """What a parser sees in one picture."""

    parts_hw: UInt8Array
    """(H, W): a Part for every pixel."""
    silhouette_hw: UInt8Array
    """(H, W): 255 on people, 0 on the background, soft between."""

    @property
    def nbytes(self) -> int:
        return self.parts_hw.nbytes + self.silhouette_hw.nbytes


class Parser:
    """Parses pictures in one pass per batch."""

    def __init__(self, network: Network, labels: LabelMap, preprocessing: Preprocessing):
        self._network = network
        self.labels = labels
        self._preprocessing = preprocessing

    @property
    def digest(self) -> str:
        return self._network.digest

    def parse(self, images: list[UInt8Array]) -> list[Parsed]:
        """Label every pixel of every picture.

        Raises:
            OutOfDeviceMemory: the batch does not fit.
        """
        with self._network.running():
            inputs = self._network.put(self._preprocessing.apply(images))
            logits_nchw = self._network.model(pixel_values=inputs).logits.float()
            return [
                self._read(logits_nchw[index : index + 1], image.shape[:2])
                for index, image in enumerate(images)
            ]

    def _read(self, logits_nchw: torch.Tensor, size: tuple[int, ...]) -> Parsed:
        full = interpolate(logits_nchw, size=size, mode="bilinear", align_corners=False)
        ids_hw = full.argmax(dim=1)[0].cpu().numpy()
        parts_hw = tidy_parts(absorb_details(self.labels.translate(ids_hw)))
        return Parsed(parts_hw, self._silhouette(full[0], parts_hw))

    def _silhouette(self, logits_chw: torch.Tensor, parts_hw: UInt8Array) -> UInt8Array:
        background = torch.from_numpy(self.labels.parts_by_id == Part.BACKGROUND)
        chances = torch.softmax(logits_chw, dim=0)[background.to(logits_chw.device)].sum(dim=0)
        person_hw = 1.0 - chances.cpu().numpy()
        low, high = SURE
        soft = np.clip((person_hw - low) / (high - low), 0.0, 1.0)
        # Unsure which of two garments it is, the parser is still sure of the person inside.
        inside = ndimage.binary_erosion(parts_hw != Part.BACKGROUND, iterations=3)
        return np.where(inside, 255, np.rint(255 * soft)).astype(np.uint8)


def load_parser(masker: ParsingMasker, plan: SegmenterPlan) -> Parser:
    """Load the network that a masker names.

    Raises:
        BundleInvalid: it cannot be loaded, or its labels are not understood.
    """
    network = load_network(
        AutoModelForSemanticSegmentation, masker.model, plan, "a semantic segmenter"
    )
    labels = map_labels(
        {int(key): str(name) for key, name in network.config.id2label.items()}, masker
    )
    return Parser(network, labels, read_preprocessing(network.folder))


def absorb_details(parts_hw: UInt8Array) -> UInt8Array:
    """Give pockets, zips and the like to the garment next to them."""
    details = parts_hw == Part.DETAIL
    if not details.any():
        return parts_hw
    garments = mark(parts_hw, *GARMENTS) > 0
    if not garments.any():
        return parts_hw
    nearest = ndimage.distance_transform_edt(~garments, return_distances=False, return_indices=True)
    absorbed = parts_hw.copy()
    absorbed[details] = parts_hw[tuple(axis[details] for axis in nearest)]
    return absorbed
