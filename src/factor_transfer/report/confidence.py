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


def p_value(differences: Sequence[float]) -> float | None:
    """The two-sided p-value of Student's t-test that the mean of paired differences is zero.

    Returns:
        A value in 0..1; ``None`` for fewer than two differences, or if they are all the same.
    """
    count = len(differences)
    deviation = stdev(differences) if count > 1 else 0.0
    if not deviation:
        return None
    return float(2 * t.sf(abs(mean(differences)) * count**0.5 / deviation, count - 1))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values, corrected for testing all of them.

    The correction is S. Holm's (*A simple sequentially rejective multiple test procedure*, 1979). Where each difference
    whose corrected value is below 0.05 is called significant, the chance that any is called so by mistake is below 5 %.

    Args:
        p_values: one for each test; ``None`` where there was nothing to test, which does not count.
    """
    tested = sorted((value, place) for place, value in enumerate(p_values) if value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, place) in enumerate(tested):
        largest = max(largest, min(1.0, value * (len(tested) - rank)))
        corrected[place] = largest
    return corrected


def as_estimate(figures: Mapping[str, Any], of: str) -> Estimate | None:
    """``"mean"`` or ``"difference"`` of a method's figures, if there is one."""
    interval = figures["interval" if of == "mean" else f"{of}_interval"]
    return None if figures[of] is None else Estimate(figures[of], interval)
