"""A family of two experts whose versions paint different pictures, or none that differ."""

from pathlib import Path
from typing import Any

from serve.designs import ExperimentDesign
from serve.experiments.allocation import allocate
from serve.store.engine import Database
from serve.store.experiment_tables import Experiment, ExperimentAllocation, ExperimentState
from serve.store.routing import bump_routing
from tests.stores import START

WARP = "{kind: warp}"
NOOP = "{kind: noop}"
VERSIONS = {"top.1": WARP, "top.2": NOOP, "top.3": NOOP, "eye.1": NOOP}


def write_two_tops(folder: Path, **backends: str) -> Path:
    """`top@1` warps, `top@2` and `top@3` change nothing; `top@4` has a bundle and is not deployed.

    Args:
        backends: in place of those above, `top_2="{kind: warp}"`.
    """
    (folder / "experts").mkdir(parents=True)
    given = {name.replace("_", "."): backend for name, backend in backends.items()}
    for stem, backend in {**VERSIONS, "top.4": NOOP, **given}.items():
        expert, name = stem.split(".")
        (folder / "experts" / f"{stem}.yaml").write_text(
            f'expert: {expert}\nname: "{name}"\ntitle: {stem}\nstatus: benchmark\n'
            f"licence: {{name: none, commercial_use: true}}\nbackend: {backend}\n"
        )
    listed = "".join(f"  - version: {stem.replace('.', '@')}\n" for stem in VERSIONS)
    (folder / "family.yaml").write_text(f"bundles_dir: experts\nexperts:\n{listed}")
    return folder / "family.yaml"


def design(name: str = "tops", share: int = 10_000, **changes: Any) -> ExperimentDesign:
    """`top@2` (control) against `top@3`, who gets this share of your users."""
    document = {
        "id": name,
        "expert": "top",
        "unit": "user",
        "arms": [
            {"name": "control", "version": "top@2", "weight": 10_000 - share},
            {"name": "challenger", "version": "top@3", "weight": share},
        ],
    }
    return ExperimentDesign.model_validate(document | changes)


async def run_experiment(
    database: Database, wanted: ExperimentDesign, state: ExperimentState = ExperimentState.RUNNING
) -> None:
    """As it is in the store while it assigns."""
    async with database.transaction() as session:
        session.add(
            Experiment(
                id=wanted.id,
                design=wanted.model_dump(mode="json"),
                state=state,
                revision=1,
                created_by="tests",
                created_at=START,
                updated_at=START,
                started_at=START,
            )
        )
        await session.flush()
        weights = {arm.name: arm.weight for arm in wanted.arms}
        session.add(
            ExperimentAllocation(
                experiment_id=wanted.id, revision=1, ranges=allocate(weights).dump(), at=START
            )
        )
        await bump_routing(session)
