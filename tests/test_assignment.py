"""The same unit gets the same arm for ever, units are spread evenly, and only those move that must.

The random numbers behind every chi-square are fixed: a failure is a change of the hash.
"""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from scipy.stats import chi2_contingency, chisquare

from serve.designs import BUCKETS, Arm, Audience, ExperimentDesign, Namespace
from serve.experiments.allocation import (
    Allocation,
    allocate,
    count_moved,
    load_allocation,
    reallocate,
)
from serve.experiments.assignment import (
    LiveExperiment,
    Party,
    assign,
    bucket_of,
    find_arm,
    hash_unit,
    is_covered,
)
from serve.policy import TenantPolicy
from serve.schemas.tryon import Word

VECTORS = json.loads((Path(__file__).parent / "assignment_vectors.json").read_text("utf-8"))
ANYTHING = TenantPolicy()
NAMES = ("control", "a", "b", "c")
# Below it in one of a million worlds: the numbers are fixed, so it is never by chance.
IMPOSSIBLE = 1e-6

units = st.text(st.characters(exclude_categories=("Cc", "Cs")), min_size=1, max_size=40)


@st.composite
def weights(draw: st.DrawFn, num_arms: int | None = None) -> dict[str, int]:
    num_arms = num_arms or draw(st.integers(2, len(NAMES)))
    cuts = sorted(
        draw(st.lists(st.integers(0, BUCKETS), min_size=num_arms - 1, max_size=num_arms - 1))
    )
    edges = [0, *cuts, BUCKETS]
    return dict(zip(NAMES, np.diff(edges).tolist(), strict=False))


def live(shares: dict[str, int] | None = None, **fields: Any) -> LiveExperiment:
    shares = shares or {"control": 9_000, "a": 1_000}
    arms = tuple(
        Arm(name=name, version=f"eye@{at}", weight=weight)
        for at, (name, weight) in enumerate(shares.items(), start=1)
    )
    design = ExperimentDesign(**{"id": "eye-2", "expert": "eye", "arms": arms, **fields})
    return LiveExperiment(design, 1, allocate(shares))


def party(user: str = "4711", **fields: Any) -> Party:
    return Party(**{"tenant_id": "acme", "request_id": "req_1", "user": user, **fields})


def arms_of(experiment: LiveExperiment, num: int) -> list[str]:
    return [find_arm(experiment, f"user:acme:{number}") for number in range(num)]


def test_another_language_gets_the_same_buckets() -> None:
    for vector in VECTORS["buckets"]:
        wanted = vector.pop("bucket")
        assert bucket_of(**vector) == wanted
        vector["bucket"] = wanted


def test_another_language_gets_the_same_assignments() -> None:
    design = ExperimentDesign.model_validate(VECTORS["experiment"])
    experiment = LiveExperiment(design, 3, load_allocation(VECTORS["ranges"]))
    for vector in VECTORS["assignments"]:
        found = assign(experiment, Party(**vector["party"]), ANYTHING)
        assert (found and found.arm, found and found.unit) == (vector["arm"], vector["unit"])
        assert found is None or found.version == design.arm(found.arm).version
        assert found is None or (found.experiment, found.revision) == ("eye-2", 3)


def test_units_are_spread_evenly_and_as_the_weights_say() -> None:
    buckets = Counter(bucket_of("arm", "eye-2", "", f"user:acme:{n}") // 100 for n in range(40_000))
    assert chisquare([buckets[part] for part in range(100)]).pvalue > IMPOSSIBLE
    shares = {"control": 9_000, "a": 900, "b": 100}
    counts = Counter(arms_of(live(shares), 40_000))
    expected = [40_000 * share / BUCKETS for share in shares.values()]
    assert chisquare([counts[arm] for arm in shares], expected).pvalue > IMPOSSIBLE


@pytest.mark.parametrize("other", [{"id": "eye-3"}, {"salt": "again"}], ids=str)
def test_two_experiments_know_nothing_of_each_other(other: dict[str, str]) -> None:
    shares = {"control": 5_000, "a": 5_000}
    pairs = Counter(
        zip(arms_of(live(shares), 20_000), arms_of(live(shares, **other), 20_000), strict=True)
    )
    table = [[pairs[one, two] for two in shares] for one in shares]
    assert chi2_contingency(table).pvalue > IMPOSSIBLE


def test_coverage_knows_nothing_of_the_arm() -> None:
    shares = {"control": 5_000, "a": 5_000}
    half = live(shares, coverage=5_000)
    named = [f"user:acme:{number}" for number in range(20_000)]
    pairs = Counter((is_covered(half, unit), find_arm(half, unit)) for unit in named)
    table = [[pairs[is_in, arm] for arm in shares] for is_in in (True, False)]
    assert chi2_contingency(table).pvalue > IMPOSSIBLE
    assert 0.48 < sum(table[0]) / 20_000 < 0.52


@given(units, weights(), st.text(max_size=20).filter(str.isprintable), st.integers(1, 10**6))
def test_a_unit_stays_on_its_arm_whatever_else_a_request_says(
    user: str, shares: dict[str, int], salt: str, number: int
) -> None:
    experiment = live(shares, salt=salt)
    first = assign(experiment, party(user), ANYTHING)
    elsewhere = party(user, request_id=f"r{number}", key_id=f"k{number}", sku="A1", collection="c")
    again = live(shares, salt=salt, title="another title", alpha=0.01)
    assert assign(again, elsewhere, TenantPolicy(weight=3)) == first
    assert first is not None
    assert first.unit == hash_unit(f"user:acme:{user}")


@settings(deadline=None)
@given(weights(), st.data())
def test_only_units_of_arms_that_shrink_move_and_no_more_than_must(
    shares: dict[str, int], data: st.DataObject
) -> None:
    before = allocate(shares)
    for _ in range(2):  # the second time from ranges that lie apart
        after_shares = data.draw(weights(len(shares)))
        after = reallocate(before, after_shares)
        old, new = before.shares(), after.shares()
        assert new == {arm: share for arm, share in after_shares.items() if share}
        losses = {arm: old.get(arm, 0) - new.get(arm, 0) for arm in NAMES}
        assert count_moved(before, after) == sum(loss for loss in losses.values() if loss > 0)
        owners = zip(owners_of(before), owners_of(after), strict=True)
        assert all(losses[one] > 0 > losses[two] for one, two in owners if one != two)
        before = after


@settings(deadline=None)
@given(st.lists(weights(2), min_size=1, max_size=5))
def test_back_and_forth_ends_where_it_began(walk: list[dict[str, int]]) -> None:
    first = reached = allocate(walk[0])
    for shares in (*walk[1:], walk[0]):
        reached = reallocate(reached, shares)
    assert reached == first


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(NAMES[1:]), st.integers(0, 3_000)), max_size=5))
def test_arms_that_trade_with_the_control_alone_give_back_what_they_got(
    steps: list[tuple[str, int]],
) -> None:
    shares = {"control": 9_700, "a": 100, "b": 100, "c": 100}
    walk = [shares]
    for arm, growth in steps:
        last = walk[-1]
        growth = min(growth, last["control"])
        walk.append({**last, "control": last["control"] - growth, arm: last[arm] + growth})
    reached = allocate(shares)
    for there in (*walk, *reversed(walk)):
        reached = reallocate(reached, there)
    assert reached == allocate(shares)


@given(st.integers(0, BUCKETS), st.integers(0, BUCKETS), st.lists(units, max_size=20))
def test_raising_the_coverage_moves_nobody(one: int, two: int, users: list[str]) -> None:
    low, high = live(coverage=min(one, two)), live(coverage=max(one, two))
    for user in users:
        before = assign(low, party(user), ANYTHING)
        assert before is None or assign(high, party(user), ANYTHING) == before


@settings(max_examples=50, deadline=None)
@given(st.integers(1, BUCKETS - 1), st.lists(units, min_size=1, max_size=40, unique=True))
def test_experiments_of_one_namespace_never_share_a_unit(cut: int, users: list[str]) -> None:
    low = live(id="one", namespace=Namespace(name="eyewear", end=cut))
    high = live(id="two", namespace=Namespace(name="eyewear", start=cut))
    for user in users:
        found = [assign(each, party(user), ANYTHING) for each in (low, high)]
        assert found.count(None) == 1, "every unit is in exactly one of two that fill the namespace"


def test_the_edges_of_what_is_covered_are_whole_buckets() -> None:
    bucket = bucket_of("coverage", "eye-2", "", "user:acme:4711")
    assert assign(live(coverage=bucket), party(), ANYTHING) is None
    assert assign(live(coverage=bucket + 1), party(), ANYTHING) is not None
    bucket = bucket_of("namespace", "eyewear", "", "user:acme:4711")
    for start, end, is_in in (
        (0, bucket, False),
        (bucket, bucket + 1, True),
        (bucket + 1, BUCKETS, False),
    ):
        experiment = live(namespace=Namespace(name="eyewear", start=start, end=end))
        assert (assign(experiment, party(), ANYTHING) is not None) is is_in
        assert is_covered(experiment, "user:acme:4711") is is_in


def test_the_fallback_is_another_kind_of_unit() -> None:
    experiment = live(unit="sku", fallback="request")
    by_request = party(sku=None, request_id="same")
    found = assign(experiment, by_request, ANYTHING)
    assert found is not None
    assert found.unit == hash_unit("request:acme:same") != hash_unit("sku:acme:same")
    assert assign(live(unit="sku"), by_request, ANYTHING) is None
    whole = assign(live(unit="tenant"), by_request, ANYTHING)
    assert whole is not None
    assert whole.unit == hash_unit("tenant:acme")


@settings(deadline=None)
@given(st.sampled_from(["user", "sku", "collection", "request", "tenant"]), units)
def test_the_same_name_at_two_tenants_is_two_units(kind: Any, name: str) -> None:
    fields = {"user": name, "sku": name, "collection": name, "request_id": name}
    one = assign(live(unit=kind), party(**fields), ANYTHING)
    two = assign(live(unit=kind), party(**fields, tenant_id="umbrella"), ANYTHING)
    assert one is not None
    assert two is not None
    assert one.unit != two.unit


@pytest.mark.parametrize(
    ("audience", "takes_part"),
    [
        ({}, True),
        ({"tenants": ("acme",)}, True),
        ({"tenants": ("umbrella",)}, False),
        ({"tenants": ()}, False),
        ({"denied_tenants": ("acme",)}, False),
        ({"tenants": ("acme",), "denied_tenants": ("acme",)}, False),
        ({"keys": ("key",)}, True),
        ({"keys": ("other",)}, False),
        ({"denied_keys": ("key",)}, False),
        ({"tenants": ("acme",), "keys": ("key",), "denied_keys": ("other",)}, True),
    ],
    ids=str,
)
def test_tenants_and_keys_may_be_let_in_and_left_out(
    audience: dict[str, Any], takes_part: bool
) -> None:
    experiment = live(audience=Audience(**audience))
    found = assign(experiment, party(key_id="key"), ANYTHING)
    assert (found is not None) is takes_part
    assert experiment.design.audience.admits("acme", "key") is takes_part


@pytest.mark.parametrize(
    "policy",
    [{"versions": ("eye@1",)}, {"versions": ("eye@2", "top@1")}, {"experts": ("top",)}],
    ids=str,
)
def test_a_tenant_that_may_not_use_one_arm_is_in_none(policy: dict[str, Any]) -> None:
    for number in range(50):
        assert assign(live(), party(str(number)), TenantPolicy(**policy)) is None
    allowed = TenantPolicy(versions=("eye@1", "eye@2"), experts=("eye",))
    assert assign(live(), party(), allowed) == assign(live(), party(), ANYTHING)


@pytest.mark.parametrize("text", ["a\nb", "a\n", "\x00", "a\x7f", "\r", "\ud800"], ids=repr)
def test_no_word_that_is_hashed_holds_a_line_break(text: str) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Word).validate_python(text)
    for field in ("id", "salt"):
        with pytest.raises(ValidationError):
            live(**{field: text})
    with pytest.raises(ValidationError):
        Namespace(name=text)


def test_the_allocation_alone_says_who_is_whose() -> None:
    """What the design's weights say meanwhile does not matter: they are what is shown."""
    experiment = live({"control": 5_000, "a": 5_000})
    other = replace(experiment, allocation=Allocation((BUCKETS,), ("a",)))
    assert {found.arm for n in range(20) if (found := assign(other, party(str(n)), ANYTHING))} == {
        "a"
    }


def owners_of(allocation: Allocation) -> list[str]:
    starts = (0, *allocation.ends)
    return [
        arm
        for start, end, arm in zip(starts, allocation.ends, allocation.arms, strict=False)
        for _ in range(end - start)
    ]
