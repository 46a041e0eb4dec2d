"""An expert of our own beside a third party's: arms like any others, with a price each."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.fakes import build_local_api
from tests.hosted_apis import KEY, serve_apis
from tests.pictures import box_mask, encoded, photo

OWN = """
expert: top
name: own
title: ours
status: benchmark
licence: {name: none, commercial_use: true}
backend: {kind: warp}
"""
THEIRS = """
expert: top
name: theirs
title: FASHN, to compare with
status: benchmark
licence: {{name: terms of service, commercial_use: true}}
backend:
  kind: hosted
  poll_s: 0.01
  provider: {{api: fashn, base_url: "{url}"}}
"""
FAMILY = """
pricing: {usd_per_gpu_second: 0.01}
experts: [{version: top@own}, {version: top@theirs}]
"""
DESIGN = {
    "id": "make-or-buy",
    "expert": "top",
    "unit": "sku",
    "arms": [
        {"name": "ours", "version": "top@own", "weight": 5_000},
        {"name": "theirs", "version": "top@theirs", "weight": 5_000},
    ],
    "start": True,
}
NUM_SKUS = 12


def test_the_report_compares_the_price_of_a_hosted_arm_with_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SM4LL_FASHN_API_KEY", KEY)
    (tmp_path / "experts").mkdir()
    (tmp_path / "experts/top.own.yaml").write_text(OWN)
    (tmp_path / "family.yaml").write_text(FAMILY)
    files = {
        "person": encoded(photo(240, 320)),
        "product": encoded(photo(100, 80, seed=1)),
        "mask": encoded(box_mask(240, 320)),
    }
    with serve_apis() as (url, apis):
        (tmp_path / "experts/top.theirs.yaml").write_text(THEIRS.format(url=url))
        api = build_local_api(tmp_path / "family.yaml")
        with TestClient(api) as http:
            assert http.post("/v1/experiments", json=DESIGN).status_code == 201
            arms = {}
            for number in range(NUM_SKUS):
                data = {"expert": "top", "sku": f"A{number}", "format": "png"}
                answer = http.post("/v1/tryon", data=data, files=files)
                assert answer.status_code == 200, answer.text
                assert answer.headers["sm4ll-outside-max-diff"] == "0"
                arms[f"A{number}"] = answer.headers["sm4ll-arm"]
            http.portal.call(api.state.services.recorder.flush)  # type: ignore[union-attr]
            report = http.get("/v1/experiments/make-or-buy/report").json()
    num_theirs = list(arms.values()).count("theirs")
    assert 0 < num_theirs < NUM_SKUS
    assert len(apis.runs) == num_theirs
    cost = next(one for one in report["metrics"] if one["metric"] == "cost_usd")
    assert 0 < cost["control"]["mean"] < 0.075
    assert cost["challenger"]["mean"] == pytest.approx(0.075)
    assert cost["challenger"]["units"] == num_theirs
