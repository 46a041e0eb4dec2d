"""What must be true before the cluster can run, looked at one by one, each with what helps.

Reads and asks only; changes nothing. What this user may not read is said, not failed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from k8s.state.findings import Manifest
from k8s.state.snapshot import RAY, Reader

if TYPE_CHECKING:
    from k8s.control.api import ControlPlane

Verdict = Literal["ok", "warning", "problem", "unknown"]


@dataclass(frozen=True, slots=True)
class Check:
    """One line."""

    verdict: Verdict
    area: str
    says: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at, and what is to run there."""

    api: "ControlPlane"
    reader: Reader
    namespace: str
    wanted: tuple[Manifest, ...]
    """Objects of the overlay; only the running RayService, where no overlay is named."""

    @property
    def service(self) -> Manifest | None:
        return next((one for one in self.wanted if one["kind"] == "RayService"), None)

    def of_kind(self, kind: str) -> list[Manifest]:
        return [one for one in self.wanted if one["kind"] == kind]


def examine(
    api: "ControlPlane", namespace: str, name: str, wanted: Sequence[Manifest]
) -> Iterator[Check]:
    """Every check, as it is made.

    Args:
        wanted: objects of the overlay; none: what runs there already.

    Raises:
        ControlPlaneUnreachable: nothing answers.
    """
    from k8s.doctor.access import check_access
    from k8s.doctor.needs import check_needs
    from k8s.doctor.operator import check_operator
    from k8s.doctor.room import check_room

    reader = Reader(api)
    if not wanted and api.find_resource(RAY, "RayService") is not None:
        there = reader.get(RAY, "RayService", name, namespace)
        wanted = [there] if there else []
    patient = Patient(api, reader, namespace, tuple(wanted))
    yield from check_access(patient)
    yield from check_operator(patient)
    yield from check_needs(patient)
    yield from check_room(patient)
