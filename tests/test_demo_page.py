"""The demo page says what happened, escapes everything, and needs nothing but its own folder."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from serve.demo.cases import demo_cases
from serve.demo.page import DemoFacts, DemoReceipt, DemoResult, render_page
from serve.demo.pictures import TINT_RGB, draw_region

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/x onerror=alert(1)>&amp;"
FACTS = DemoFacts("0.1.0", "3.11.2", "2.60.0", 8, "2026-01-31 12:00 UTC", 12.34)
RECEIPT = DemoReceipt("eye@1", "warp", True, {"segment": 100.4, "generate": 20.0}, 0, 42)


class _Page(HTMLParser):
    """Collects what a browser would see: tags, what they load, ids and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def _png(image_hw: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image_hw).save(buffer, "PNG")
    return buffer.getvalue()


def _result(index: int = 0, **changes: object) -> DemoResult:
    region_hw = np.zeros((64, 48), np.uint8)
    region_hw[16:48, 12:36] = 255
    picture = _png(np.full((64, 48, 3), 90, np.uint8))
    result = DemoResult(demo_cases()[index], True, picture, _png(region_hw), RECEIPT)
    return replace(result, **changes)


def _all_results() -> list[DemoResult]:
    return [_result(index) for index in range(len(demo_cases()))]


def _failed(**texts: str) -> DemoResult:
    return _result(ok=False, region_png=None, receipt=None, **texts)


def test_every_case_is_shown_with_four_pictures(tmp_path: Path) -> None:
    page = _Page(render_page(_all_results(), tmp_path / "new" / "demo", facts=FACTS))
    assert all(case.expert in page.text and case.title in page.text for case in demo_cases())
    for kind in ("person", "product", "region", "result"):
        shown = {name for name in page.values("src") if f"_{kind}." in name}
        assert len(shown) == len(demo_cases())


def test_page_refers_only_to_files_beside_it(tmp_path: Path) -> None:
    page = _Page(render_page([*_all_results(), _failed()], tmp_path, facts=FACTS))
    ids = set(page.values("id"))
    references = page.values("src", "href")
    assert len(references) > 50
    for reference in references:
        assert reference[1:] in ids if reference[0] == "#" else (tmp_path / reference).is_file()


def test_page_loads_nothing_over_a_network(tmp_path: Path) -> None:
    source = render_page(_all_results(), tmp_path, facts=FACTS).read_text(encoding="utf-8")
    assert re.findall(r"https?://|@import|url\(|//\w+\.\w", source) == []
    assert "<link" not in source


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    receipt = replace(RECEIPT, version=HOSTILE, backend=HOSTILE, stages_ms={HOSTILE: 1.0})
    results = [
        _result(case=replace(demo_cases()[0], title=HOSTILE), receipt=receipt),
        _failed(error_code=HOSTILE, detail=HOSTILE, remedy=HOSTILE),
    ]
    facts = DemoFacts(HOSTILE, HOSTILE, HOSTILE, 8, HOSTILE, 1.0)
    page = _Page(render_page(results, tmp_path, facts=facts))
    assert page.tags.count("script") == 1
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert not any("evil" in value for value in page.values("src", "href", "style", "id"))
    assert page.text.count(HOSTILE) >= 10


def test_failed_case_shows_code_detail_and_remedy_instead_of_a_picture(tmp_path: Path) -> None:
    failed = _failed(error_code="subject_not_found", detail="No face found.", remedy="Look here.")
    page = _Page(render_page([failed], tmp_path, facts=FACTS))
    assert page.text.count("subject_not_found") == 2
    assert "No face found." in page.text
    assert "Look here." in page.text
    assert list(tmp_path.glob("*_result*")) == []
    assert "0 of 1 experts" in page.text


@pytest.mark.parametrize(
    ("diff", "shown"), [(0, "✓ 0"), (3, "✗ 3"), (None, "not measured")], ids=str
)
def test_outside_difference_is_judged(tmp_path: Path, diff: int | None, shown: str) -> None:
    result = _result(receipt=replace(RECEIPT, outside_max_diff=diff))
    page = _Page(render_page([result], tmp_path, facts=FACTS))
    assert page.text.count(shown) == 2


def test_only_a_preview_is_called_a_preview(tmp_path: Path) -> None:
    preview = _Page(render_page([_result()], tmp_path / "a", facts=FACTS))
    final = _result(receipt=replace(RECEIPT, is_preview=False))
    published = _Page(render_page([final], tmp_path / "b", facts=FACTS))
    assert preview.text.count("preview") - published.text.count("preview") == 3


def test_receipt_is_told_in_numbers(tmp_path: Path) -> None:
    page = _Page(render_page([_result()], tmp_path, facts=FACTS))
    for shown in ("eye@1 on warp", "seed 42", "120 ms", "segment", "12.3 s", "Ray 2.60.0"):
        assert shown in page.text


def test_stage_missing_in_one_receipt_is_a_dash_not_a_shift(tmp_path: Path) -> None:
    other = _result(1, receipt=replace(RECEIPT, stages_ms={"generate": 7.0, "paste": 5.0}))
    page = _Page(render_page([_result(), other], tmp_path, facts=FACTS))
    body = page.text.split("total", 1)[1]
    assert "–7512" in re.sub(r"\s", "", body)


def test_every_picture_has_an_alternative_text_or_is_a_copy_for_comparing(tmp_path: Path) -> None:
    page = _Page(render_page(_all_results(), tmp_path, facts=FACTS))
    num_cases = len(demo_cases())
    alts = page.values("alt")
    assert len(alts) == page.tags.count("img") == 5 * num_cases
    assert alts.count("") == num_cases


def test_region_overlay_tints_the_region_and_nothing_else() -> None:
    person_hwc = np.full((64, 48, 3), 120, np.uint8)
    region_hw = np.zeros((64, 48), np.uint8)
    region_hw[16:48, 12:36] = 255
    overlay_hwc = np.asarray(draw_region(Image.fromarray(person_hwc), _png(region_hw)))
    changed_hw = (overlay_hwc != person_hwc).any(axis=2)
    assert np.array_equal(changed_hw, region_hw > 0)
    assert tuple(overlay_hwc[16, 12]) == TINT_RGB != tuple(overlay_hwc[32, 24])


def test_region_of_another_size_is_stretched_over_the_person() -> None:
    person = Image.new("RGB", (96, 128), (120, 120, 120))
    overlay_hwc = np.asarray(draw_region(person, _png(np.full((64, 48), 255, np.uint8))))
    assert overlay_hwc.shape == (128, 96, 3)
    assert (overlay_hwc != 120).any(axis=2).all()


def test_result_keeps_its_bytes_and_gets_its_own_suffix(tmp_path: Path) -> None:
    buffer = BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "WEBP", lossless=True)
    render_page([_result(result_png=buffer.getvalue())], tmp_path, facts=FACTS)
    assert (tmp_path / "01_eye_result.webp").read_bytes() == buffer.getvalue()
