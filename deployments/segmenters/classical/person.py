"""Everything found out about one picture, whatever the expert: the analysis that is cached."""

from dataclasses import dataclass

import cv2
import numpy as np

from deployments.segmenters.classical.body import Body, read_body
from deployments.segmenters.classical.cascades import Cascades
from deployments.segmenters.classical.faces import FaceFinder
from deployments.segmenters.classical.figure import build_figure
from deployments.segmenters.classical.headmarks import Head, HeadReader
from deployments.segmenters.classical.outline import read_outline
from deployments.segmenters.classical.silhouette import cut_silhouette
from deployments.segmenters.classical.skin import tight_skin
from serve.errors import SubjectNotFound
from serve.messages import Landmarks, UInt8Array

NO_PERSON_REMEDY = (
    "Send a sharp, upright photo of one person that fills a good part of the picture, "
    "or bring your own mask."
)


@dataclass(frozen=True, slots=True)
class Person:
    """One person in one picture, in its pixels."""

    silhouette_hw: UInt8Array
    skin_hw: UInt8Array
    """(H, W): 1 where the picture has the colour of the person's skin."""
    body: Body
    head: Head | None
    landmarks: Landmarks

    @property
    def nbytes(self) -> int:
        return self.silhouette_hw.nbytes + self.skin_hw.nbytes + 4096


class PersonReader:
    """Analyses pictures. Not thread-safe."""

    def __init__(self) -> None:
        cascades = Cascades()
        self._faces = FaceFinder(cascades)
        self._heads = HeadReader(cascades)

    def read(self, image_hwc: UInt8Array) -> Person:
        """Find the main person.

        Raises:
            SubjectNotFound: nobody is found.
        """
        face = self._faces.find(image_hwc)
        if face is None:
            raise SubjectNotFound("no person found in the picture", remedy=NO_PERSON_REMEDY)
        head = self._heads.read(image_hwc, face)
        figure = build_figure(head)
        silhouette = cut_silhouette(image_hwc, head, figure)
        body = read_body(silhouette, read_outline(silhouette, figure), figure)
        skin = tight_skin(image_hwc, _cheeks(image_hwc.shape[:2], head))
        landmarks = Landmarks({**body.points, **head.points()}, head.box())
        return Person(silhouette, skin, body, head, landmarks)


def _cheeks(shape: tuple[int, ...], head: Head) -> UInt8Array:
    """Between eyes and mouth there is skin, whatever hair, beard and glasses cover."""
    mask = np.zeros(shape, np.uint8)
    axes = (0.5 * head.size_px, 0.35 * head.size_px)
    cv2.ellipse(mask, (head.at(0.1 * head.turn, 0.2), axes, head.roll), 1, -1)
    return mask
