"""A power law through measured points."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PowerLaw:
    """``y = factor * x ** exponent``; `r2` is the share of the logarithms' variance that it explains."""

    factor: float
    exponent: float
    r2: float

    def at(self, x: float) -> float:
        """Its value."""
        return float(self.factor * x**self.exponent)


def power_law(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """Least squares on the logarithms; None for fewer than two different points.

    >>> law = power_law([1, 2, 4], [3, 12, 48])
    >>> round(law.factor, 6), round(law.exponent, 6), round(law.r2, 6)
    (3.0, 2.0, 1.0)
    """
    if len(set(x)) < 2 or min(*x, *y) <= 0:
        return None
    across, up = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    exponent, offset = np.polyfit(across, up, 1)
    left = up - (exponent * across + offset)
    total = float(((up - up.mean()) ** 2).sum())
    return PowerLaw(float(np.exp(offset)), float(exponent), 1 - float((left**2).sum()) / total if total else 1.0)
