"""Confidence intervals and significance tests for results over a few seeds."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, mean, stdev
from typing import Any, NamedTuple

from scipy.stats import t

CONFIDENCE = 0.95
_ROUNDING = 2e-4  # values in percent have four digits, so that equal differences may differ by this much


class Estimate(NamedTuple):
    """A mean with its confidence interval.

    Attributes:
        mean: the mean of the values.
        interval: half the width of the 95 % confidence interval (Student's t); ``None`` if there is only one value.
    """

    mean: float
    interval: float | None

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero. Equal values are not significant, since they do not show any spread."""
        return bool(self.interval) and abs(self.mean) > (self.interval or 0)

    def __format__(self, spec: str) -> str:
        """Format as ``mean ± interval``, both by ``spec``. A plus sign in ``spec`` applies only to the mean."""
        half = "" if self.interval is None else f" ± {self.interval:{spec.lstrip('+')}}"
        return f"{self.mean:{spec}}{half}"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean and 95 % confidence interval of independent values in percent, such as one per seed.

    Args:
        values: the values, at least one.

    Example:
        >>> from factor_transfer.report.confidence import estimate
        >>> f"{estimate([90.0, 91.0, 92.0]):.2f}"
        '91.00 ± 2.48'
    """
    count = len(values)
    if count < 2:
        return Estimate(values[0], None)
    quantile = float(t.ppf(0.5 + CONFIDENCE / 2, count - 1))
    return Estimate(mean(values), quantile * _spread(values) / count**0.5)


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """The mean of the values that are not ``None``; ``None`` if there are none."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def p_value(differences: Sequence[float]) -> float | None:
    """The two-sided p-value of Student's t-test that the mean of paired differences is zero.

    Args:
        differences: the differences in percentage points, one per pair.

    Returns:
        A value in 0..1; ``None`` for fewer than two differences, or if they are all the same.
    """
    count = len(differences)
    deviation = _spread(differences)
    if not deviation:
        return None
    return float(2 * t.sf(abs(mean(differences)) * count**0.5 / deviation, count - 1))


def _spread(values: Sequence[float]) -> float:
    """The standard deviation of values in percent; 0 if they are equal but for rounding, or there is only one."""
    deviation = stdev(values) if len(values) > 1 else 0.0
    return deviation if deviation > _ROUNDING else 0.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values corrected for multiple comparisons by Holm's method.

    S. Holm, *A simple sequentially rejective multiple test procedure*, 1979. If every difference with a corrected value
    below 0.05 is called significant, the probability that any of these calls is wrong is below 5 %.

    Args:
        p_values: one p-value per test; ``None`` for a comparison without a test, which is not counted.

    Example:
        >>> from factor_transfer.report.confidence import holm
        >>> holm([0.01, None, 0.04])
        [0.02, None, 0.04]
    """
    tested = sorted((value, index) for index, value in enumerate(p_values) if value is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (value, index) in enumerate(tested):
        largest = max(largest, min(1.0, value * (len(tested) - rank)))
        corrected[index] = largest
    return corrected


def as_estimate(figures: Mapping[str, Any], of: str) -> Estimate | None:
    """The ``"mean"`` or ``"difference"`` in the figures of a method, with its interval; ``None`` if it is missing."""
    interval = figures["interval" if of == "mean" else f"{of}_interval"]
    return None if figures[of] is None else Estimate(figures[of], interval)
