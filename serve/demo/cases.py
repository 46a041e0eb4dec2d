"""The demo's cases: one person and one product for each expert."""

from dataclasses import dataclass
from pathlib import Path

from serve.messages import EXPERTS, Expert

ASSETS_DIR = Path(__file__).parent / "assets"

_TABLE: dict[Expert, tuple[str, str, str]] = {
    "eye": ("Tortoiseshell sunglasses", "person_portrait.jpg", "product_eyewear.png"),
    "shoes": ("Orange sneakers", "person_full.jpg", "product_shoes.png"),
    "face": ("Another face", "person_portrait.jpg", "product_face.jpg"),
    "top": ("Striped sweater", "person_portrait.jpg", "product_top.png"),
    "bottom": ("Wide denim", "person_full.jpg", "product_bottom.png"),
    "dress": ("Floral midi dress", "person_full.jpg", "product_dress.png"),
    "bg": ("Beach at sunset", "person_portrait.jpg", "product_bg.jpg"),
}


@dataclass(frozen=True, slots=True)
class DemoCase:
    """One try-on to show: which expert, on whom, with what."""

    expert: Expert
    title: str
    person_path: Path
    product_path: Path


def demo_cases() -> tuple[DemoCase, ...]:
    """One case per expert, in the family's order; every path is a bundled file."""
    return tuple(_case(expert, *_TABLE[expert]) for expert in EXPERTS)


def _case(expert: Expert, title: str, person: str, product: str) -> DemoCase:
    return DemoCase(expert, title, ASSETS_DIR / person, ASSETS_DIR / product)
