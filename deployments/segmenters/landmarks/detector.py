"""Where the main person is: a detector's largest box labelled person."""

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForObjectDetection

from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.network import Network, load_network
from deployments.segmenters.preprocessing import Preprocessing, read_preprocessing
from deployments.sources import ModelSource
from serve.errors import BundleInvalid
from serve.messages import Box, UInt8Array

SURE = 0.5
"""Source: default threshold of transformers' post_process_object_detection."""
FloatArray = NDArray[np.float64]


class Detector:
    """Finds people, all pictures of a batch in one pass."""

    def __init__(self, network: Network, preprocessing: Preprocessing, person_id: int):
        self._network = network
        self._preprocessing = preprocessing
        self._person_id = person_id

    @property
    def digest(self) -> str:
        return self._network.digest

    def find(self, images: list[UInt8Array]) -> list[Box | None]:
        """The box of the main person in each picture, in its pixels; None where nobody is."""
        with self._network.running():
            inputs = self._network.put(self._preprocessing.apply(images))
            found = self._network.model(pixel_values=inputs)
            scores_nq = self._person_scores(found.logits.float()).cpu().numpy()
            boxes_nq4 = found.pred_boxes.float().cpu().numpy()
        return [
            choose_person(scores, boxes, image.shape)
            for scores, boxes, image in zip(scores_nq, boxes_nq4, images, strict=True)
        ]

    def _person_scores(self, logits_nqc: torch.Tensor) -> torch.Tensor:
        # One class more than there are labels is "nothing", and then the classes exclude another.
        if logits_nqc.shape[-1] == self._network.config.num_labels + 1:
            return logits_nqc.softmax(dim=-1)[..., self._person_id]
        return logits_nqc.sigmoid()[..., self._person_id]


def load_detector(source: ModelSource, plan: SegmenterPlan) -> Detector:
    """Load the detector that a masker names.

    Raises:
        BundleInvalid: it cannot be loaded, or has no label person.
    """
    network = load_network(
        AutoModelForObjectDetection, source, plan, "an object detector", full_precision=True
    )
    ids = [int(key) for key, name in network.config.id2label.items() if name.lower() == "person"]
    if not ids:
        raise BundleInvalid(
            f"{network.label}: none of its labels is person",
            remedy="name a detector of COCO's classes under masker.detector",
        )
    return Detector(network, read_preprocessing(network.folder, (640, 640)), ids[0])


def choose_person(scores_q: FloatArray, boxes_q4: FloatArray, shape: tuple[int, ...]) -> Box | None:
    """The largest box that is surely a person.

    Args:
        boxes_q4: (centre x, centre y, width, height) as shares of the picture.
    """
    sure = np.flatnonzero(scores_q >= SURE)
    if not len(sure):
        return None
    sizes = boxes_q4[sure, 2] * boxes_q4[sure, 3]
    x, y, width, height = (float(value) for value in boxes_q4[sure[int(sizes.argmax())]])
    tall, wide = float(shape[0]), float(shape[1])
    return (
        *(max((x - width / 2) * wide, 0.0), max((y - height / 2) * tall, 0.0)),
        *(min((x + width / 2) * wide, wide), min((y + height / 2) * tall, tall)),
    )
