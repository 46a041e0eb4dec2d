"""What is wrong with something in the cluster, and what helps, in words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

Manifest = dict[str, Any]
"""An object as the control plane writes it down."""
Weight = Literal["broken", "waiting", "note"]
"""`broken`: waiting alone does not cure it. `waiting`: it may pass. `note`: nothing to be done."""

OPERATOR_CHART = (
    "kuberay-operator kuberay-operator --repo https://ray-project.github.io/kuberay-helm"
    " --version 1.7.0 -n kuberay-system"
)
INSTALL_OPERATOR = f"`helm install {OPERATOR_CHART} --create-namespace`"

HEAVIEST_FIRST: tuple[Weight, ...] = ("broken", "waiting", "note")


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about one thing; pods of a pool with the same trouble share one."""

    weight: Weight
    subject: str
    """What it is about: `pod sm4ll-x-worker-y (heavy-gpu)`."""
    says: str
    remedy: str = ""
    others: int = 0
    """So many more have the same trouble."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """A finding that does not know yet of whom it is."""

    weight: Weight
    says: str
    remedy: str = ""

    def of(self, subject: str) -> Finding:
        return Finding(self.weight, subject, self.says, self.remedy)


def sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """What cannot wait first, otherwise in the order in which it was found."""
    return tuple(sorted(findings, key=lambda found: HEAVIEST_FIRST.index(found.weight)))


def merge_alike(findings: Sequence[tuple[str, Finding]]) -> tuple[Finding, ...]:
    """One finding for all of one group with the same words.

    Args:
        findings: each with its group, such as the pool.
    """
    merged: dict[tuple[str, str], Finding] = {}
    for group, found in findings:
        key = group, found.says
        before = merged.get(key)
        merged[key] = found if before is None else replace(before, others=before.others + 1)
    return tuple(merged.values())


def dig(manifest: object, *path: str | int) -> Any:
    """What lies at the path; None where something on the way is absent."""
    at = manifest
    for step in path:
        if isinstance(step, int):
            at = at[step] if isinstance(at, list) and len(at) > step else None
        else:
            at = at.get(step) if isinstance(at, dict) else None
    return at


def name_of(manifest: Manifest) -> str:
    return str(dig(manifest, "metadata", "name") or "")


def labels_of(manifest: Manifest) -> dict[str, str]:
    return dict(dig(manifest, "metadata", "labels") or {})


def condition_of(manifest: Manifest, kind: str) -> Manifest:
    """The condition of that type; empty where it has none."""
    for condition in dig(manifest, "status", "conditions") or ():
        if condition.get("type") == kind:
            return dict(condition)
    return {}
