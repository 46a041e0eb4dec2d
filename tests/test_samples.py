"""Every expert on real people, over HTTP: found where the body part is seen, exact outside.

Runs where the sample pictures lie beside the checkout. `pytest -m ray tests/test_samples.py -s`
prints the table; with SM4LL_SAMPLES_OUT=DIR it also leaves every result there to look at.
"""

import math
import os
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from serve.client import ApiError, Client
from serve.demo.cases import demo_cases
from serve.messages import EXPERTS, Expert
from serve.schemas.tryon import TryOnOptions

pytestmark = pytest.mark.ray

PEOPLE = (
    *("eye_1", "eye_2", "shoes_1", "shoes_2", "face_1", "face_3"),
    *("top_1", "top_3", "bottom_1", "bottom_4", "dress_1", "dress_2"),
)
# bottom_4 and dress_2 show the same person, whose face is behind a hat.
NO_FACE = {"bottom_4", "dress_2"}
FEET = {"shoes_1", "shoes_2", "top_1", "bottom_1"}
LEGS = FEET | {"top_3", "bottom_4", "dress_1", "dress_2"}
VISIBLE: dict[Expert, set[str]] = {
    "eye": set(PEOPLE) - NO_FACE,
    "face": set(PEOPLE) - NO_FACE,
    "shoes": FEET,
    "bottom": LEGS,
    "top": set(PEOPLE),
    "dress": set(PEOPLE),
    "bg": set(PEOPLE),
}
PRODUCTS: dict[Expert, str] = {
    "eye": "eye_2",
    "face": "face_1",
    "shoes": "shoes_1",
    "bottom": "bottom_1",
    "top": "top_1",
    "dress": "dress_2",
}


def product_path(samples: Path, expert: Expert, person: str) -> Path:
    """The person's own product where there is one for the expert, else a fixed one."""
    if expert == "bg":
        return next(case.product_path for case in demo_cases() if case.expert == "bg")
    folder = person if person.startswith(expert) else PRODUCTS[expert]
    return samples / folder / "product.jpg"


def try_on(api: Client, samples: Path, expert: Expert, person: str) -> tuple[str, bytes | None]:
    """What happened, as (`ok` and the outside difference, or the code), and the picture."""
    person_bytes = (samples / person / "person.jpg").read_bytes()
    product_bytes = product_path(samples, expert, person).read_bytes()
    try:
        answer = api.tryon(TryOnOptions(expert=expert, format="png"), person_bytes, product_bytes)
    except ApiError as exc:
        return exc.problem.code, None
    return f"ok {answer.receipt.outside.max_abs_diff}", answer.pictures[0].data


@pytest.mark.parametrize("expert", EXPERTS)
def test_expert_finds_its_region_on_real_people_and_changes_nothing_else(
    samples: Path, api: Client, expert: Expert
) -> None:
    out_dir = os.environ.get("SM4LL_SAMPLES_OUT")
    outcomes: dict[str, str] = {}
    for person in PEOPLE:
        outcomes[person], picture = try_on(api, samples, expert, person)
        if out_dir and picture:
            Path(out_dir).mkdir(parents=True, exist_ok=True)
            (Path(out_dir) / f"{expert}_on_{person}.png").write_bytes(picture)
    print_row(expert, outcomes)
    visible = VISIBLE[expert]
    found = {person for person, outcome in outcomes.items() if outcome.startswith("ok")}
    needed = 9 if len(visible) >= 9 else math.ceil(0.75 * len(visible))
    assert len(found & visible) >= needed
    assert all(outcomes[person] == "ok 0" for person in found)
    refused = {outcome for outcome in outcomes.values() if not outcome.startswith("ok")}
    assert refused <= {"subject_not_found"}


def print_row(expert: Expert, outcomes: dict[str, str]) -> None:
    table = Table("expert", "visible", "found", "outside 0", "not found on")
    found = [person for person, outcome in outcomes.items() if outcome.startswith("ok")]
    exact = sum(outcome == "ok 0" for outcome in outcomes.values())
    missing = ", ".join(
        f"{person} ({'visible' if person in VISIBLE[expert] else 'not visible'})"
        for person in PEOPLE
        if person not in found
    )
    visible = VISIBLE[expert]
    hits = f"{len(visible & set(found))} of {len(visible)}"
    table.add_row(expert, str(len(visible)), hits, f"{exact} of {len(found)}", missing)
    Console(width=140).print(table)
