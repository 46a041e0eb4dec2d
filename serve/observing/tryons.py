"""What is counted of try-ons: told how each ended, once, and how long it took, once answered."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from serve.observing.meter import NO_METER, Meter
from serve.observing.tenants import TenantLabels

Way = Literal["request", "job"]

OK = "ok"
NO_VERSION = "none"
"""Of what failed before a version was chosen."""
MIN_STAGE_S = 5e-4
"""A stage that took less did nothing that is seen in a picture of milliseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TryOn:
    """One try-on, as its series are named."""

    expert: str
    version: str
    way: Way
    tenant_id: str


class TryOns:
    """Of one process, used from its one event loop."""

    def __init__(self, meter: Meter = NO_METER, tenants: TenantLabels | None = None):
        self._meter = meter
        self._tenants = tenants or TenantLabels()
        self._usd_per_gpu_second: float | None = None

    def use_price(self, usd_per_gpu_second: float | None) -> None:
        """Of passes in this cluster; without one only what others charge is a cost."""
        self._usd_per_gpu_second = usd_per_gpu_second

    def failed(self, tryon: TryOn, code: str) -> None:
        self._count(tryon, code)

    def withheld(self, tryon: TryOn) -> None:
        """A lossless answer differed outside the region; `failed` is told as well."""
        self._meter.add(
            "sm4ll_outside_violations_total", expert=tryon.expert, version=tryon.version
        )

    def delivered(
        self, tryon: TryOn, *, images: int, gpu_s: float, upstream_usd: float | None = None
    ) -> None:
        """
        Args:
            gpu_s: as the tenant is charged for it.
            upstream_usd: what a third party charged.
        """
        self._count(tryon, OK)
        meter, by = self._meter, {"expert": tryon.expert, "version": tryon.version}
        meter.add("sm4ll_images_total", images, **by)
        tenant = self._tenants.of(tryon.tenant_id)
        if gpu_s > 0:
            meter.add("sm4ll_gpu_seconds_total", gpu_s, **by)
            meter.add("sm4ll_tenant_gpu_seconds_total", gpu_s, tenant=tenant)
        usd = gpu_s * (self._usd_per_gpu_second or 0.0) + (upstream_usd or 0.0)
        if usd > 0:
            meter.add("sm4ll_cost_usd_total", usd, **by)
            meter.add("sm4ll_tenant_cost_usd_total", usd, tenant=tenant)

    def copied(self, num_by_kind: Mapping[str, int]) -> None:
        """Which full-size copies of the person's picture were made for one of them."""
        for kind, num in num_by_kind.items():
            self._meter.add("sm4ll_image_copies_total", num, kind=kind)

    def answered(self, tryon: TryOn, total_ms: float, stages_ms: Mapping[str, float]) -> None:
        """The same as in the receipt, and what came after the receipt."""
        meter, total_s = self._meter, total_ms / 1e3
        meter.observe(
            "sm4ll_tryon_duration_seconds",
            total_s,
            expert=tryon.expert,
            version=tryon.version,
            way=tryon.way,
        )
        tenant = self._tenants.of(tryon.tenant_id)
        meter.observe("sm4ll_tenant_tryon_duration_seconds", total_s, tenant=tenant)
        for stage, ms in stages_ms.items():
            if ms / 1e3 >= MIN_STAGE_S:
                meter.observe(
                    "sm4ll_stage_duration_seconds", ms / 1e3, stage=stage, expert=tryon.expert
                )

    def _count(self, tryon: TryOn, code: str) -> None:
        self._meter.add(
            "sm4ll_tryons_total",
            expert=tryon.expert,
            version=tryon.version,
            way=tryon.way,
            code=code,
        )
