"""What a few seeds allow to be said."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import Any, NamedTuple

from scipy.stats import t

CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A mean, and half the width of its interval.

    Attributes:
        mean: of the values.
        interval: the mean ± this covers the true one in 95 % of all cases (Student's t); ``None`` of one value.
    """

    mean: float
    interval: float | None

    @property
    def significant(self) -> bool:
        """Whether the interval leaves zero out. Values that are all the same say nothing of their spread."""
        return bool(self.interval) and abs(self.mean) > (self.interval or 0)

    def __format__(self, spec: str) -> str:
        """``mean ± interval``, both by ``spec``; the sign, if asked for, is the mean's alone."""
        half = "" if self.interval is None else f" ± {self.interval:{spec.lstrip('+')}}"
        return f"{self.mean:{spec}}{half}"


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval of independent values, such as one of each seed.

    Args:
        values: at least one.
    """
    count = len(values)
    if count < 2:
        return Estimate(values[0], None)
    quantile = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    return Estimate(mean(values), quantile * stdev(values) / count**0.5)


def as_estimate(figures: Mapping[str, Any], of: str) -> Estimate | None:
    """``"mean"`` or ``"difference"`` of a method's figures, if there is one."""
    interval = figures["interval" if of == "mean" else f"{of}_interval"]
    return None if figures[of] is None else Estimate(figures[of], interval)
