"""Seven LoRA experts on one tiny base, as the configuration a team would write."""

from pathlib import Path

import yaml

from serve.messages import EXPERTS
from tests.labelled_people import LABELS
from tests.tiny.klein import build_klein, build_klein_lora
from tests.tiny.segformer import build_segformer

SHARED_BASE = "shared:\n  - name: klein\n    autoscaling: {max_replicas: 1}\n"


def write_lora_experts(folder: Path) -> None:
    """Save base and adapters under `folder/models` and a bundle per expert, `<expert>@lora`."""
    build_klein(folder / "models/klein")
    for seed, expert in enumerate(EXPERTS):
        build_klein_lora(folder / "models" / expert, seed=seed + 1)
        bundle = lora_bundle(expert)
        path = folder / "experts" / f"{expert}.lora.yaml"
        path.write_text(yaml.safe_dump(bundle, sort_keys=False))


def write_parsed_expert(folder: Path) -> None:
    """`top@parsed`: the same LoRA, its region found by a tiny human parser of drawn people."""
    build_segformer(folder / "models/parser", LABELS)
    masker = {"kind": "parsing", "model": {"path": "../models/parser"}}
    bundle = {**lora_bundle("top"), "name": "parsed", "masker": masker}
    (folder / "experts/top.parsed.yaml").write_text(yaml.safe_dump(bundle, sort_keys=False))


def lora_bundle(expert: str) -> dict[str, object]:
    """One expert's bundle; paths are relative to the folder of the bundles."""
    return {
        "expert": expert,
        "name": "lora",
        "title": f"a tiny LoRA for {expert}",
        "status": "benchmark",
        "licence": {"name": "none", "commercial_use": True},
        "backend": {
            "kind": "inpaint",
            "model": {"path": "../models/klein"},
            "adapter": {"source": {"path": f"../models/{expert}"}},
            "prompt": {"text": f"the person wears the {expert} of the second picture"},
            "recipe": {"pipeline": "Flux2KleinInpaintPipeline"},
        },
        "crop": {"size_px": 192},
        "product": {"canvas": {"size": [96, 96]}},
        "tiers": {"draft": 1, "normal": 2, "high": 4},
    }


def lora_lines() -> str:
    """The lines of the family's experts, all on SHARED_BASE."""
    versions = [*(f"{expert}@lora" for expert in EXPERTS), "top@parsed"]
    return "".join(f"  - version: {version}\n    shared: klein\n" for version in versions)
