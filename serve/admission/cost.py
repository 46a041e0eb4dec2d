"""Predicted GPU-seconds of a request, per version: a constant plus seconds per unit of work.

Starts from a guess and learns from what was measured; pure.
"""

import math
from dataclasses import dataclass

from serve.messages import ExpertRequest

# Of 1.0 for the newest measurement: half of what is known is from the last seven.
FORGETTING = 0.9
# A pass that met a cold cache or a stalled device takes many times as long and says nothing
# about the next one; what is really three times as slow is believed after a few of them.
MAX_SURPRISE = 3.0
# How much measurements of different sizes must differ before they say what size costs, as a
# fraction of their mean size; below it the guess's own proportion holds.
SPREAD = 0.1
MIN_COST_S = 1e-4


@dataclass(frozen=True, slots=True)
class Line:
    """GPU-seconds as a function of work units."""

    constant_s: float = 0.05
    s_per_unit: float = 0.02
    """About a small expert on a GPU; one measurement replaces it."""

    def at(self, num_units: float) -> float:
        return max(MIN_COST_S, self.constant_s + self.s_per_unit * num_units)


GUESS = Line()


def count_units(request: ExpertRequest) -> float:
    """Steps x megapixels x images of a request."""
    height_px, width_px = request.crop_hwc.shape[:2]
    megapixels = float(height_px * width_px) / 1e6
    return request.num_steps * megapixels * request.num_images


class VersionCost:
    """One version's line through what was measured of it, the newest counting most."""

    def __init__(self, guess: Line = GUESS):
        self._guess = guess
        self._weight = 0.0
        self._mean_units = 0.0
        self._mean_s = 0.0
        self._variance = 0.0
        self._covariance = 0.0
        self.line = guess

    @property
    def is_measured(self) -> bool:
        return self._weight > 0

    def observe(self, num_units: float, measured_s: float) -> None:
        """Learn from one finished request; nothing from a time that is none."""
        if not 0 < measured_s < math.inf:
            return
        if self.is_measured:
            measured_s = min(measured_s, MAX_SURPRISE * self.line.at(num_units))
        self._weight = FORGETTING * self._weight + 1.0
        gain = 1.0 / self._weight
        off_units, off_s = num_units - self._mean_units, measured_s - self._mean_s
        self._mean_units += gain * off_units
        self._mean_s += gain * off_s
        self._variance = (1 - gain) * (self._variance + gain * off_units * off_units)
        self._covariance = (1 - gain) * (self._covariance + gain * off_units * off_s)
        self.line = self._fit()

    def _fit(self) -> Line:
        units, seconds = self._mean_units, self._mean_s
        scale = seconds / self._guess.at(units)
        # The guess, scaled to the mean, as so much evidence as a spread of SPREAD would be.
        ridge = (SPREAD * units) ** 2 + 1e-12
        slope = (self._covariance + ridge * scale * self._guess.s_per_unit) / (
            self._variance + ridge
        )
        # Neither part may be negative; the line still goes through the mean.
        steepest = seconds / units if units > 0 else 0.0
        slope = min(max(slope, 0.0), steepest)
        return Line(seconds - slope * units, slope)


class CostModel:
    """What a request of any version will cost."""

    def __init__(self, guess: Line = GUESS):
        self._guess = guess
        self._versions: dict[str, VersionCost] = {}

    def predict(self, version: str, num_units: float) -> float:
        """GPU-seconds, above 0."""
        known = self._versions.get(version)
        return (self._guess if known is None else known.line).at(num_units)

    def observe(self, version: str, num_units: float, measured_s: float) -> None:
        """Learn from one finished request: its share of the pass that it was in."""
        if version not in self._versions:
            self._versions[version] = VersionCost(self._guess)
        self._versions[version].observe(num_units, measured_s)
