"""Everything found out about one picture, whatever the expert: the analysis that is cached."""

from dataclasses import dataclass

import cv2
import numpy as np

from deployments.segmenters.classical.body import Body, read_body
from deployments.segmenters.classical.cascades import Cascades, Search
from deployments.segmenters.classical.faces import FaceFinder, FaceFound
from deployments.segmenters.classical.figure import Figure, build_figure
from deployments.segmenters.classical.headmarks import Head, HeadReader
from deployments.segmenters.classical.hem import find_hem
from deployments.segmenters.classical.matte import draw_matte
from deployments.segmenters.classical.outline import read_outline
from deployments.segmenters.classical.pedestrian import Pedestrian, PedestrianFinder
from deployments.segmenters.classical.presence import (
    count_limbs,
    guess_figure,
    is_body_shaped,
    stand_out,
)
from deployments.segmenters.classical.silhouette import (
    cut_person,
    cut_silhouette,
    reduce_lab,
)
from deployments.segmenters.classical.skin import loose_skin, tight_skin
from serve.errors import SubjectNotFound
from serve.messages import Landmarks, UInt8Array

SURE_FACE = 4.0
SURE_PEDESTRIAN = 1.2
ENOUGH_EVIDENCE = 2.5
UPPER_BODY_SIDES_PX = (320, 450)
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
    hem_row: float | None = None
    """Where the upper garment ends and the lower begins, in pixels; None in a one-piece."""

    @property
    def nbytes(self) -> int:
        return self.silhouette_hw.nbytes + self.skin_hw.nbytes + 4096


class PersonReader:
    """Analyses pictures. Not thread-safe."""

    def __init__(self) -> None:
        self._cascades = Cascades()
        self._faces = FaceFinder(self._cascades)
        self._heads = HeadReader(self._cascades)
        self._pedestrians = PedestrianFinder()

    def read(self, image_hwc: UInt8Array) -> Person:
        """Find the main person.

        Raises:
            SubjectNotFound: nobody is found.
        """
        face = self._faces.find(image_hwc)
        if face is not None and face.votes >= SURE_FACE:
            return self._with_face(image_hwc, face)
        standing = self._pedestrians.find(image_hwc)
        if face is not None and (standing is None or _may_wear(standing, face)):
            return self._with_face(image_hwc, face)
        return self._without_face(image_hwc, standing)

    def _with_face(self, image_hwc: UInt8Array, face: FaceFound) -> Person:
        head = self._heads.read(image_hwc, face)
        figure = build_figure(head)
        silhouette = cut_silhouette(image_hwc, head, figure)
        skin = tight_skin(image_hwc, _cheeks(image_hwc.shape[:2], head))
        return _describe(image_hwc, silhouette, skin, figure, head)

    def _without_face(self, image_hwc: UInt8Array, standing: Pedestrian | None) -> Person:
        """By shape: a standing figure, else whatever stands out and is somebody."""
        if standing is not None and standing.weight > SURE_PEDESTRIAN:
            figure = standing.figure()
            face = self._faces.find_near(image_hwc, figure.eyes, figure.unit_px)
            if face is not None:
                return self._with_face(image_hwc, face)
            silhouette = cut_silhouette(image_hwc, None, figure)
            return _describe(
                image_hwc, silhouette, _bright_skin(image_hwc, silhouette), figure, None
            )
        silhouette = self._standing_out(image_hwc, standing)
        figure = guess_figure((silhouette > 127).astype(np.uint8))
        return _describe(image_hwc, silhouette, _bright_skin(image_hwc, silhouette), figure, None)

    def _standing_out(self, image_hwc: UInt8Array, standing: Pedestrian | None) -> UInt8Array:
        lab, scale = reduce_lab(image_hwc)
        cues = stand_out(lab)
        body = None if cues is None else cut_person(lab, *cues, lab.shape[0])
        if body is None or not is_body_shaped(body):
            raise SubjectNotFound(
                "no person found: neither a face nor a figure that stands out",
                remedy=NO_PERSON_REMEDY,
            )
        small = cv2.resize(image_hwc, lab.shape[1::-1], interpolation=cv2.INTER_AREA)
        limbs = min(count_limbs(np.asarray(small, np.uint8), body), 2)
        evidence = float(limbs + self._count_upper_bodies(image_hwc))
        evidence += 0.0 if standing is None else min(2.0 * standing.weight, 1.0)
        if limbs == 0 or evidence < ENOUGH_EVIDENCE:
            raise SubjectNotFound(
                "no person found: what stands out has neither a face nor limbs",
                remedy=NO_PERSON_REMEDY,
            )
        return draw_matte(image_hwc, body, np.zeros(body.shape, np.bool_))

    def _count_upper_bodies(self, image_hwc: UInt8Array) -> int:
        """At how many of two sizes head and shoulders are recognised."""
        gray = np.asarray(cv2.cvtColor(image_hwc, cv2.COLOR_RGB2GRAY), np.uint8)
        count = 0
        for side_px in UPPER_BODY_SIDES_PX:
            scale = side_px / max(gray.shape)
            small = cv2.resize(gray, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            search = Search(0.2 * side_px, 0.9 * side_px, 1.1, 1)
            count += bool(self._cascades.find(np.asarray(small, np.uint8), "upperbody", search))
        return count


def _may_wear(standing: Pedestrian, face: FaceFound) -> bool:
    """False for a face that would sit on the chest or beside the head of a sure figure."""
    figure = standing.figure()
    offset = max(abs(face.x - figure.eyes[0]), abs(face.y - figure.eyes[1]))
    return standing.weight <= SURE_PEDESTRIAN or offset < 1.5 * figure.unit_px


def _describe(
    image_hwc: UInt8Array,
    silhouette_hw: UInt8Array,
    skin_hw: UInt8Array,
    figure: Figure,
    head: Head | None,
) -> Person:
    outline = read_outline(silhouette_hw, figure)
    body = read_body(silhouette_hw, outline, figure)
    hem = find_hem(image_hwc, skin_hw, outline, figure)
    if head is None:
        return Person(silhouette_hw, skin_hw, body, None, Landmarks(body.points), hem)
    landmarks = Landmarks({**body.points, **head.points()}, head.box())
    return Person(silhouette_hw, skin_hw, body, head, landmarks, hem)


def _bright_skin(image_hwc: UInt8Array, silhouette_hw: UInt8Array) -> UInt8Array:
    """Skin learnt without a face: the lighter half of what may be skin on the person."""
    candidates = loose_skin(image_hwc) & (silhouette_hw > 127)
    luma = cv2.cvtColor(image_hwc, cv2.COLOR_RGB2GRAY)
    if not candidates.any():
        return np.zeros_like(silhouette_hw)
    lighter = luma >= np.median(luma[candidates > 0])
    return tight_skin(image_hwc, (candidates & lighter).astype(np.uint8))


def _cheeks(shape: tuple[int, ...], head: Head) -> UInt8Array:
    """Between eyes and mouth there is skin, whatever hair, beard and glasses cover."""
    mask = np.zeros(shape, np.uint8)
    axes = (0.5 * head.size_px, 0.35 * head.size_px)
    cv2.ellipse(mask, (head.at(0.0, 0.2), axes, head.roll), 1, -1)
    return mask
