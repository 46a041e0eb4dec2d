"""A keypoint network of transformers: pictures in, one person's points out."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForPoseEstimation

from deployments.maskers import LandmarksMasker
from deployments.segmenters.base import SegmenterPlan
from deployments.segmenters.landmarks.detector import Detector, load_detector
from deployments.segmenters.landmarks.heatmaps import Cut, cut_around, decode_heatmaps
from deployments.segmenters.landmarks.layouts import LAYOUTS, Points
from deployments.segmenters.landmarks.pose import Pose
from deployments.segmenters.network import Network, load_network
from deployments.segmenters.preprocessing import Preprocessing, read_preprocessing
from serve.errors import BundleInvalid
from serve.messages import Box, UInt8Array

EMPTY_BYTES = 1024


@dataclass(frozen=True, slots=True)
class Seen:
    """What was found in one picture: a person's points, or that nobody is there."""

    pose: Pose | None

    @property
    def nbytes(self) -> int:
        return EMPTY_BYTES if self.pose is None else self.pose.nbytes


class Estimator:
    """Top-down: finds the person, then the points, each in one pass per batch."""

    def __init__(
        self,
        network: Network,
        preprocessing: Preprocessing,
        points: Points,
        detector: Detector | None,
    ):
        self._network = network
        self._preprocessing = preprocessing
        self._points = points
        self._detector = detector

    @property
    def digests(self) -> list[str]:
        mine = [self._network.digest, self._points]
        return mine if self._detector is None else [*mine, self._detector.digest]

    def estimate(self, images: list[UInt8Array]) -> list[Seen]:
        """Find the main person's points in every picture.

        Raises:
            OutOfDeviceMemory: the batch does not fit.
        """
        boxes = self._boxes(images)
        size = self._preprocessing.width_px, self._preprocessing.height_px
        cuts = {i: cut_around(box, size) for i, box in enumerate(boxes) if box is not None}
        crops = [cut.extract(images[index], size) for index, cut in cuts.items()]
        poses = dict(zip(cuts, self._read(crops, list(cuts.values())), strict=True))
        return [Seen(poses.get(index)) for index in range(len(images))]

    def _boxes(self, images: list[UInt8Array]) -> list[Box | None]:
        if self._detector is not None:
            return self._detector.find(images)
        return [(0.0, 0.0, float(image.shape[1]), float(image.shape[0])) for image in images]

    def _read(self, crops: list[UInt8Array], cuts: list[Cut]) -> list[Pose]:
        if not crops:
            return []
        with self._network.running():
            inputs = self._network.put(self._preprocessing.normalise(crops))
            maps = self._network.model(pixel_values=inputs, **self._choice(len(crops))).heatmaps
            heatmaps_nkhw = maps.float().cpu().numpy()
        map_size = heatmaps_nkhw.shape[3], heatmaps_nkhw.shape[2]
        poses = []
        for heatmaps_khw, cut in zip(heatmaps_nkhw, cuts, strict=True):
            points, scores = decode_heatmaps(heatmaps_khw)
            poses.append(Pose(cut.to_picture(points, map_size), scores, self._points))
        return poses

    def _choice(self, count: int) -> dict[str, torch.Tensor]:
        """Which of its experts a VitPose+ shall ask."""
        backbone = getattr(self._network.config, "backbone_config", None)
        if getattr(backbone, "num_experts", 1) == 1:
            return {}
        index = LAYOUTS[self._points].dataset_index
        return {"dataset_index": torch.full((count,), index, device=self._network.device.name)}


def load_estimator(masker: LandmarksMasker, plan: SegmenterPlan) -> Estimator:
    """Load the networks that a masker names.

    Raises:
        BundleInvalid: one cannot be loaded, or the points are not as many as masker.points has.
    """
    network = load_network(AutoModelForPoseEstimation, masker.model, plan, "a keypoint network")
    expected = LAYOUTS[masker.points].num_points
    if network.config.num_labels != expected:
        counts = ", ".join(f"{name} {layout.num_points}" for name, layout in LAYOUTS.items())
        raise BundleInvalid(
            f"{network.label} finds {network.config.num_labels} points, {masker.points} has "
            f"{expected}",
            remedy=f"set masker.points to what the network's points mean: {counts}",
        )
    detector = None if masker.detector is None else load_detector(masker.detector, plan)
    return Estimator(
        network, read_preprocessing(network.folder, (192, 256)), masker.points, detector
    )
