"""Who gets which arm: a pure function of experiment, salt and unit, the same in every process and
in every language.

    bucket = first 8 bytes, big-endian, of
             SHA-256(UTF-8 of "sm4ll/1\\n" purpose "\\n" experiment "\\n" salt "\\n" unit) mod 10000

`purpose` is `arm`, `coverage` or, for a namespace, `namespace` with the namespace's name in place
of the experiment's and no salt; or `shadow`, with the request's id in place of the unit (see
`shadow.py`). `unit` is `kind:tenant:value`, for a tenant `tenant:tenant`. The arm is that whose
range of the allocation holds the bucket; `tests/assignment_vectors.json` has examples. SHA-256:
FIPS 180-4.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from operator import attrgetter
from struct import Struct
from typing import Self

from serve.designs import BUCKETS, Audience, ExperimentDesign, UnitKind
from serve.experiments.allocation import Allocation
from serve.policy import TenantPolicy

SCHEME = "sm4ll/1"
UNIT_PREFIX = f"{SCHEME}\nunit\n".encode()
_read_first = Struct(">Q").unpack_from


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """Whom a request is for, as far as an experiment may ask."""

    tenant_id: str
    request_id: str | None
    """None for work that is many requests and has one version, as a batch."""
    key_id: str | None = None
    user: str | None = None
    sku: str | None = None
    collection: str | None = None

    def unit(self, kind: UnitKind) -> str | None:
        """The unit of that kind, apart from every other tenant's; None where nobody named it."""
        if kind == "tenant":
            return f"tenant:{self.tenant_id}"
        named = NAMED[kind](self)
        return None if named is None else f"{kind}:{self.tenant_id}:{named}"


NAMED: dict[UnitKind, Callable[[Party], str | None]] = {
    "user": attrgetter("user"),
    "sku": attrgetter("sku"),
    "collection": attrgetter("collection"),
    "request": attrgetter("request_id"),
}


@dataclass(frozen=True, slots=True)
class LiveExperiment:
    """A design with the allocation that holds now, and what follows from both for every request:
    assignments are made for each, and these change with neither."""

    design: ExperimentDesign
    revision: int
    """Of the allocation."""
    allocation: Allocation
    arm_prefix: bytes = field(init=False, repr=False, compare=False)
    """What is hashed before the unit."""
    versions: tuple[str, ...] = field(init=False, repr=False, compare=False)
    """Of the allocation's ranges."""
    people: "People | None" = field(init=False, repr=False, compare=False)
    """The design's audience; None where anybody may take part."""
    doors: tuple[tuple[bytes, int, int], ...] = field(init=False, repr=False, compare=False)
    """Prefix, start and end of the buckets, exclusive, that a unit must be in to take part."""

    def __post_init__(self) -> None:
        design = self.design
        by_arm = {arm.name: arm.version for arm in design.arms}
        keep = object.__setattr__
        keep(self, "arm_prefix", prefix_of("arm", design.id, design.salt))
        keep(self, "versions", tuple(by_arm[arm] for arm in self.allocation.arms))
        keep(self, "people", None if design.audience == Audience() else People.of(design.audience))
        keep(self, "doors", tuple(_list_doors(design)))


@dataclass(frozen=True, slots=True)
class People:
    """An audience of thousands of ids, asked about for every request."""

    tenants: frozenset[str] | None
    denied_tenants: frozenset[str]
    keys: frozenset[str] | None
    denied_keys: frozenset[str | None]

    @classmethod
    def of(cls, audience: Audience) -> Self:
        return cls(
            None if audience.tenants is None else frozenset(audience.tenants),
            frozenset(audience.denied_tenants),
            None if audience.keys is None else frozenset(audience.keys),
            frozenset(audience.denied_keys),
        )

    def admit(self, party: Party) -> bool:
        """As `Audience.admits`."""
        if party.tenant_id in self.denied_tenants or party.key_id in self.denied_keys:
            return False
        is_tenant = self.tenants is None or party.tenant_id in self.tenants
        return is_tenant and (self.keys is None or party.key_id in self.keys)


def _list_doors(design: ExperimentDesign) -> Iterator[tuple[bytes, int, int]]:
    space = design.namespace
    if space is not None:
        yield prefix_of("namespace", space.name, ""), space.start, space.end
    if design.coverage != BUCKETS:
        yield prefix_of("coverage", design.id, design.salt), 0, design.coverage


@dataclass(frozen=True, slots=True)
class Assignment:
    """The arm of one request."""

    experiment: str
    revision: int
    arm: str
    version: str
    unit: str
    """Hash of the unit: what the exposure log knows of it."""


def prefix_of(purpose: str, name: str, salt: str) -> bytes:
    return f"{SCHEME}\n{purpose}\n{name}\n{salt}\n".encode()


def bucket_of(purpose: str, name: str, salt: str, unit: str) -> int:
    """In [0, 10000)."""
    return _bucket(prefix_of(purpose, name, salt), unit.encode())


def _bucket(prefix: bytes, unit: bytes) -> int:
    number: int = _read_first(sha256(prefix + unit).digest())[0]
    return number % BUCKETS


def hash_unit(unit: str) -> str:
    """32 hexadecimal digits: tells units apart, and does not tell who they are."""
    return _hash(unit.encode())


def _hash(unit: bytes) -> str:
    return sha256(UNIT_PREFIX + unit).hexdigest()[:32]


def assign(experiment: LiveExperiment, party: Party, policy: TenantPolicy) -> Assignment | None:
    """The arm of a request; None where it takes no part.

    Whether it takes part never depends on the arm it would get: a tenant that may not use one of
    the versions is in none of them.
    """
    if experiment.people is not None and not experiment.people.admit(party):
        return None
    if not may_use_all(experiment.design, policy):
        return None
    named = unit_of(experiment.design, party)
    if named is None:
        return None
    unit = named.encode()
    for prefix, start, end in experiment.doors:  # not `all(...)`: a generator costs as a hash does
        if not start <= _bucket(prefix, unit) < end:
            return None
    index = bisect_right(experiment.allocation.ends, _bucket(experiment.arm_prefix, unit))
    return Assignment(
        experiment.design.id,
        experiment.revision,
        experiment.allocation.arms[index],
        experiment.versions[index],
        _hash(unit),
    )


def may_use_all(design: ExperimentDesign, policy: TenantPolicy) -> bool:
    """Whether a tenant may get every arm's version; no arm decides who is counted."""
    if policy.experts is not None and design.expert not in policy.experts:
        return False
    allowed = policy.versions
    if allowed is not None:
        for arm in design.arms:
            if arm.version not in allowed:
                return False
    return True


def unit_of(design: ExperimentDesign, party: Party) -> str | None:
    """What is kept on one arm; None where the request names neither unit nor fallback."""
    unit = party.unit(design.unit)
    if unit is None and design.fallback is not None:
        return party.unit(design.fallback)
    return unit


def is_covered(experiment: LiveExperiment, unit: str) -> bool:
    """Whether the unit is in the experiment at all, by its namespace and its coverage."""
    named = unit.encode()
    return all(start <= _bucket(prefix, named) < end for prefix, start, end in experiment.doors)


def find_arm(experiment: LiveExperiment, unit: str) -> str:
    """The name of the arm whose range holds the unit's bucket."""
    bucket = _bucket(experiment.arm_prefix, unit.encode())
    return experiment.allocation.arms[bisect_right(experiment.allocation.ends, bucket)]
