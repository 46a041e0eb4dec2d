"""Who gets which arm: a pure function of experiment, salt and unit, the same in every process and
in every language.

    bucket = first 8 bytes, big-endian, of
             SHA-256(UTF-8 of "sm4ll/1\\n" purpose "\\n" experiment "\\n" salt "\\n" unit) mod 10000

`purpose` is `arm`, `coverage` or, for a namespace, `namespace` with the namespace's name in place
of the experiment's and no salt. `unit` is `kind:tenant:value`, for a tenant `tenant:tenant`. The
arm is that whose range of the allocation holds the bucket; `tests/assignment_vectors.json` has
examples. SHA-256: FIPS 180-4.
"""

import hashlib
from bisect import bisect_right
from dataclasses import dataclass

from serve.designs import BUCKETS, ExperimentDesign, UnitKind
from serve.experiments.allocation import Allocation
from serve.policy import TenantPolicy

SCHEME = "sm4ll/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Whom a request is for, as far as an experiment may ask."""

    tenant_id: str
    request_id: str
    key_id: str | None = None
    user: str | None = None
    sku: str | None = None
    collection: str | None = None

    def unit(self, kind: UnitKind) -> str | None:
        """The unit of that kind, apart from every other tenant's; None where nobody named it."""
        if kind == "tenant":
            return f"tenant:{self.tenant_id}"
        named = {
            "user": self.user,
            "sku": self.sku,
            "collection": self.collection,
            "request": self.request_id,
        }[kind]
        return None if named is None else f"{kind}:{self.tenant_id}:{named}"


@dataclass(frozen=True, slots=True)
class LiveExperiment:
    """A design with the allocation that holds now."""

    design: ExperimentDesign
    revision: int
    """Of the allocation."""
    allocation: Allocation


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm of one request."""

    experiment: str
    revision: int
    arm: str
    version: str
    unit: str
    """Hash of the unit: what the exposure log knows of it."""


def bucket_of(purpose: str, name: str, salt: str, unit: str) -> int:
    """In [0, 10000)."""
    digest = hashlib.sha256(f"{SCHEME}\n{purpose}\n{name}\n{salt}\n{unit}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


def hash_unit(unit: str) -> str:
    """32 hexadecimal digits: tells units apart, and does not tell who they are."""
    return hashlib.sha256(f"{SCHEME}\nunit\n{unit}".encode()).hexdigest()[:32]


def assign(experiment: LiveExperiment, party: Party, policy: TenantPolicy) -> Assignment | None:
    """The arm of a request; None where it takes no part.

    Whether it takes part never depends on the arm it would get: a tenant that may not use one of
    the versions is in none of them.
    """
    design = experiment.design
    if not design.audience.admits(party.tenant_id, party.key_id):
        return None
    if not all(policy.allows(design.expert, arm.version) for arm in design.arms):
        return None
    unit = party.unit(design.unit)
    if unit is None and design.fallback is not None:
        unit = party.unit(design.fallback)
    if unit is None or not is_covered(design, unit):
        return None
    arm = find_arm(experiment, unit)
    return Assignment(
        experiment=design.id,
        revision=experiment.revision,
        arm=arm,
        version=design.arm(arm).version,
        unit=hash_unit(unit),
    )


def is_covered(design: ExperimentDesign, unit: str) -> bool:
    """Whether the unit is in the experiment at all, by its namespace and its coverage."""
    space = design.namespace
    if space is not None and not (
        space.start <= bucket_of("namespace", space.name, "", unit) < space.end
    ):
        return False
    if design.coverage == BUCKETS:
        return True
    return bucket_of("coverage", design.id, design.salt, unit) < design.coverage


def find_arm(experiment: LiveExperiment, unit: str) -> str:
    """The name of the arm whose range holds the unit's bucket."""
    design, allocation = experiment.design, experiment.allocation
    bucket = bucket_of("arm", design.id, design.salt, unit)
    return allocation.arms[bisect_right(allocation.ends, bucket)]
