"""What repeats can tell: medians with intervals, three-way comparisons, outliers, percentiles, trends. Pure functions.

Repeats are few (5 is usual, 20 many), their noise is not normal (now and then a slow one) and it differs from machine
to machine. So every answer has an interval or a p-value, and "cannot tell" is an answer. Knows numbers, not cells,
records or units. docs/statistics.md has the measured coverage of what is promised here.

Assumed: repeats are independent, and drawn alike within a cell. What slows a whole round (a hot machine, a neighbour)
may be shared by its cells: comparing within a round takes it out. What a median or a ratio hides, such as two modes,
stays hidden. An interval over repeats says nothing about another machine, another build or another process.

Sources:
- Efron & Tibshirani, An Introduction to the Bootstrap, 1993; Silverman & Young, The bootstrap: to smooth or not to
  smooth?, Biometrika 74, 1987
- Welch, The generalization of "Student's" problem when several different population variances are involved,
  Biometrika 34, 1947
- Iglewicz & Hoaglin, How to Detect and Handle Outliers, 1993
- Hyndman & Fan, Sample quantiles in statistical packages, The American Statistician 50, 1996
- NIST Digital Library of Mathematical Functions (DLMF), 8.17; Abramowitz & Stegun, 26.7
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist, fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["better", "worse", "cannot_tell"]

MIN_REPEATS = 5  # of 4, even the whole span holds the median only 87.5 % of the time
MIN_COMPARED = 3  # pairs, or values in each group, below which there is no interval and no verdict
MIN_TREND = 6
BEYOND = 3  # samples that are to be expected beyond a percentile before it is named

RESAMPLES = 2000
# Width of the noise that a resample gets, in mean absolute deviations from the median, is BANDWIDTH / n. Chosen by
# simulation: with 4 the coverage falls below 93 % for skewed noise, with 7 it passes 98 % for heavy tails at n = 5.
BANDWIDTH = 5.0

ROUNDING = 1e-12  # log ratios nearer to 0 are the rounding of equal numbers
LOG_LARGEST = 709.0  # e to this is finite
LARGE_DF = 1e6  # from here on the normal distribution serves, corrected; lgamma would lose the digits


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median with its 95 % interval, in the unit of the values; no interval for fewer than MIN_REPEATS values."""

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """b against a, as a relative change: 0.12 is 12 % more. None where nothing can be compared.

    low and high bound the change at the confidence that was asked for. The verdict is "better" or "worse" only where
    they exclude 0. n counts the pairs, or the values of the smaller group.
    """

    verdict: Verdict
    change: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class Trend:
    """A straight line through values in the order they were measured.

    change is what the line rises from the first value to the last, in the unit of the values; p_value is two-sided,
    for a slope of 0.
    """

    change: float
    p_value: float


# --- one cell ----------------------------------------------------------------------------------------------------


def median_interval(values: Sequence[float], seed: int = 0) -> Estimate:
    """Median with a 95 % interval from a smoothed bootstrap; the order of the values does not matter.

    A plain bootstrap of a median knows only the few values that are there: its interval is too short, and jumps from
    value to value. Each resampled value gets some normal noise (Silverman & Young 1987), less with more repeats.
    Positive values are resampled as logarithms. Work and memory grow with the number of values: for repeats, not for
    thousands of requests. Raises ValueError for no values, NaN or infinity.
    """
    ordered = sorted(_finite(values))
    if not ordered:
        raise ValueError("a median needs at least one value")
    centre, n = percentile(ordered, 50), len(ordered)
    if n < MIN_REPEATS:
        return Estimate(centre, None, None, n)
    if ordered[0] == ordered[-1]:
        return Estimate(centre, centre, centre, n)
    low, high = _log_bootstrap(ordered, seed) if ordered[0] > 0 else _plain_bootstrap(ordered, seed)
    return Estimate(centre, min(low, centre), max(high, centre), n)


def _log_bootstrap(ordered: Sequence[float], seed: int) -> tuple[float, float]:
    low, high = _bootstrap_bounds(np.log(ordered), seed)
    return _exp(low), _exp(high)


def _plain_bootstrap(ordered: Sequence[float], seed: int) -> tuple[float, float]:
    unit = _largest(ordered)  # of size 1, so that no square overflows
    low, high = _bootstrap_bounds(np.asarray(ordered) / unit, seed)
    return _clamp(low * unit), _clamp(high * unit)


def _bootstrap_bounds(values: NDArray[np.float64], seed: int) -> tuple[float, float]:
    """2.5 % and 97.5 % percentiles of the medians of smoothed resamples."""
    n = len(values)
    width = BANDWIDTH / n * float(np.mean(np.abs(values - np.median(values))))
    random = np.random.Generator(np.random.PCG64(seed))
    resamples = values[random.integers(n, size=(RESAMPLES, n))]
    resamples += width * random.standard_normal((RESAMPLES, n))
    resamples.sort(axis=1)
    medians = np.sort((resamples[:, (n - 1) // 2] + resamples[:, n // 2]) / 2)
    return percentile(medians, 2.5), percentile(medians, 97.5)


def outliers(values: Sequence[float]) -> list[bool]:
    """Which values lie far from the rest: modified z-score above 3.5 (Iglewicz & Hoaglin 1993). Labels; drops nothing.

    The score is the distance from the median over the median of these distances (over their mean, where more than half
    of the values are equal), scaled to count standard deviations of normal values. None below MIN_REPEATS values.
    Raises ValueError for NaN or infinity.
    """
    numbers = _finite(values)
    if len(numbers) < MIN_REPEATS or min(numbers) == max(numbers):
        return [False] * len(numbers)
    unit = _largest(numbers)
    centre = percentile(sorted(number / unit for number in numbers), 50)
    distances = [abs(number / unit - centre) for number in numbers]
    middle = percentile(sorted(distances), 50)
    deviation = middle / 0.6745 if middle else fmean(distances) * math.sqrt(math.pi / 2)
    return [distance > 3.5 * deviation for distance in distances]


# --- two cells ---------------------------------------------------------------------------------------------------


def compare_paired(
    a: Mapping[int, float], b: Mapping[int, float], *, higher_is_better: bool, confidence: float = 0.95
) -> Comparison:
    """b against a within each round (the key) that both have: t interval for the mean logarithm of their ratio.

    If a and b are exchangeable within a round, their log ratio is symmetric about 0, and for continuous symmetric
    values with tails like the normal's or heavier the t test errs on the side of "cannot tell". Whatever multiplies a
    whole round cancels. change is the geometric mean of the ratios, less 1. Raises ValueError for NaN, infinity, or a
    confidence that is not between 0 and 1.
    """
    _check_confidence(confidence)
    _finite([*a.values(), *b.values()])
    rounds = sorted(a.keys() & b.keys())
    if not rounds or any(a[key] <= 0 or b[key] <= 0 for key in rounds):
        return Comparison("cannot_tell", None, None, None, len(rounds))
    change, variance = _moments([math.log(b[key]) - math.log(a[key]) for key in rounds])
    n = len(rounds)
    return _judge(change, [(math.sqrt(variance / n), n - 1.0)], n, higher_is_better, confidence)


def compare_unpaired(
    a: Sequence[float], b: Sequence[float], *, higher_is_better: bool, confidence: float = 0.95
) -> Comparison:
    """b against a where no round joins them (two runs, say): t interval for the difference of their mean logarithms.

    The wider of two intervals: Welch's, in which each group has a spread of its own, and the pooled one. They agree for
    groups of one size; beside a large group, three values say too little about their own spread for Welch's alone.
    change is the ratio of the geometric means, less 1. Raises ValueError for NaN, infinity, or a confidence that is not
    between 0 and 1.
    """
    _check_confidence(confidence)
    first, second = _finite(a), _finite(b)
    n = min(len(first), len(second))
    if n == 0 or min(*first, *second) <= 0:
        return Comparison("cannot_tell", None, None, None, n)
    mean_a, variance_a = _moments([math.log(value) for value in first])
    mean_b, variance_b = _moments([math.log(value) for value in second])
    spreads = (variance_a, len(first), variance_b, len(second))
    return _judge(mean_b - mean_a, [_welch(*spreads), _pooled(*spreads)], n, higher_is_better, confidence)


def _welch(variance_a: float, n_a: int, variance_b: float, n_b: int) -> tuple[float, float]:
    """Standard error of a difference of means, and its degrees of freedom (Welch 1947)."""
    part_a, part_b = variance_a / n_a, variance_b / n_b
    if min(n_a, n_b) < MIN_COMPARED or part_a + part_b == 0:
        return 0.0, 1.0
    share = part_a / (part_a + part_b)
    return math.sqrt(part_a + part_b), 1 / (share**2 / (n_a - 1) + (1 - share) ** 2 / (n_b - 1))


def _pooled(variance_a: float, n_a: int, variance_b: float, n_b: int) -> tuple[float, float]:
    """The same for groups of one spread (Student)."""
    df = max(n_a + n_b - 2, 1)
    variance = (variance_a * (n_a - 1) + variance_b * (n_b - 1)) / df
    return math.sqrt(variance * (1 / n_a + 1 / n_b)), float(df)


def _judge(
    change: float, errors: Sequence[tuple[float, float]], n: int, higher_is_better: bool, confidence: float
) -> Comparison:
    """From a log change and its standard errors (with degrees of freedom; the widest counts) to a verdict."""
    if abs(change) < ROUNDING:
        change = 0.0
    if n < MIN_COMPARED:
        return Comparison("cannot_tell", _relative(change), None, None, n)
    half = max(-student_t_quantile((1 - confidence) / 2, df) * error for error, df in errors)
    low, high = _relative(change - half), _relative(change + half)
    verdict: Verdict = "cannot_tell"
    if low > 0 or high < 0:
        verdict = "better" if (low > 0) == higher_is_better else "worse"
    return Comparison(verdict, _relative(change), low, high, n)


def _relative(log_change: float) -> float:
    return math.expm1(min(log_change, LOG_LARGEST))


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is not between 0 and 1")


# --- many values -------------------------------------------------------------------------------------------------


def percentile(ordered: Sequence[float] | NDArray[np.float64], percent: float) -> float:
    """Percentile of sorted values, linear between neighbours (NumPy's default, type 7 of Hyndman & Fan 1996).

    Raises ValueError for no values or a percent outside 0 to 100.
    """
    _check_percent(percent)
    if len(ordered) == 0:
        raise ValueError("a percentile needs at least one value")
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    weight = position - below
    low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
    return min(max(low * (1 - weight) + high * weight, low), high)  # rounding does not leave the neighbours


def enough_for(percent: float, count: int) -> bool:
    """Whether so many samples carry that percentile: 3 of them are to be expected beyond it, 5 there for a median.

    p90 takes 30, p95 60, p99 300; p5 as many as p95. None carry p0 or p100. Raises ValueError for a percent outside 0
    to 100.
    """
    _check_percent(percent)
    if percent == 50:
        return count >= MIN_REPEATS
    beyond = count * min(percent, 100 - percent) / 100
    return beyond >= BEYOND * (1 - 1e-9)  # 100 - 99.9 is a little less than 0.1


def _check_percent(percent: float) -> None:
    if not 0 <= percent <= 100:
        raise ValueError(f"percent {percent} is not between 0 and 100")


def trend(values: Sequence[float]) -> Trend | None:
    """Least-squares line through values in the order they were measured; None below MIN_TREND values.

    For relative changes give logarithms of ratios. Assumes that, the line aside, the values are independent; neighbours
    that resemble each other make the p-value too small. Raises ValueError for NaN or infinity.
    """
    numbers, n = _finite(values), len(values)
    if n < MIN_TREND:
        return None
    unit = _largest(numbers) or 1.0
    heights = [number / unit - numbers[0] / unit for number in numbers]  # equal values become zeros, exactly
    centre, middle = fmean(heights), (n - 1) / 2
    spread = n * (n * n - 1) / 12  # of the places 0 … n - 1: the sum of their squared distances from the middle
    slope = sum((place - middle) * height for place, height in enumerate(heights)) / spread
    rest = sum((height - centre - slope * (place - middle)) ** 2 for place, height in enumerate(heights))
    change = _clamp(slope * (n - 1) * unit)
    error = math.sqrt(rest / (n - 2) / spread)
    if error == 0:
        return Trend(change, 0.0 if slope else 1.0)
    return Trend(change, 2 * _upper_tail(abs(slope) / error, n - 2))


# --- Student's t -------------------------------------------------------------------------------------------------


def student_t_cdf(t: float, df: float) -> float:
    """Probability of at most t with df (1 or more, need not be whole) degrees of freedom; to about 1e-9.

    Raises ValueError for other df or a t that is not finite.
    """
    _check_df(df)
    if not math.isfinite(t):
        raise ValueError(f"t is {t}")
    tail = _upper_tail(abs(t), df)
    return tail if t < 0 else 1 - tail


def student_t_quantile(p: float, df: float) -> float:
    """The t that student_t_cdf takes to p. Raises ValueError for p outside 1e-100 to 1 (excluded), or df below 1."""
    _check_df(df)
    if not 1e-100 <= p < 1:
        raise ValueError(f"p {p} is not between 1e-100 and 1")
    return _lower_quantile(p, df) if p <= 0.5 else -_lower_quantile(1 - p, df)


@lru_cache(maxsize=256)
def _lower_quantile(p: float, df: float) -> float:
    """For p up to ½, by Newton's method: below 0 the distribution is convex, so it goes down from 0, never too far."""
    t = 0.0
    for _ in range(1000):
        step = (_upper_tail(-t, df) - p) / _density(t, df)
        t -= step
        if abs(step) <= 1e-13 * abs(t):
            break
    return min(t, 0.0)


def _upper_tail(t: float, df: float) -> float:
    """Probability of more than t, which is not negative: half of I(df/2, ½) at df / (df + t²) (DLMF 8.17)."""
    if df > LARGE_DF:  # Abramowitz & Stegun 26.7.8
        return NormalDist().cdf(-t * (1 - 0.25 / df) / math.sqrt(1 + t * t / (2 * df)))
    whole = df + t * t
    return 0.5 * _incomplete_beta(df / 2, 0.5, df / whole, t * t / whole) if math.isfinite(whole) else 0.0


def _density(t: float, df: float) -> float:
    if df > LARGE_DF:
        return NormalDist().pdf(t)
    factor = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    return float(factor * (1 + t * t / df) ** (-(df + 1) / 2))


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Regularized incomplete beta function I(a, b) at x; rest is 1 - x, given so that a small one keeps its digits."""
    if x == 0 or rest == 0:
        return 1.0 if rest == 0 else 0.0
    if x > (a + 1) / (a + b + 2):  # on the other side the fraction converges quickly
        return 1 - _incomplete_beta(b, a, rest, x)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    return math.exp(a * math.log(x) + b * math.log(rest) - log_beta) / (a * _beta_fraction(a, b, x))


def _beta_fraction(a: float, b: float, x: float) -> float:
    """1 + d₁/(1 + d₂/(1 + …)) of DLMF 8.17.22, from the front (modified Lentz: Thompson & Barnett 1986)."""
    value, upper, lower = 1.0, 1.0, 0.0
    for m in range(10_000):
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        even = (m + 1) * (b - m - 1) * x / ((a + 2 * m + 1) * (a + 2 * m + 2))
        for coefficient in (odd, even):
            upper = 1 + coefficient / upper
            lower = 1 / (1 + coefficient * lower)
            value *= upper * lower
        if abs(upper * lower - 1) < 1e-15:
            break
    return value


def _check_df(df: float) -> None:
    if not 1 <= df < math.inf:
        raise ValueError(f"{df} degrees of freedom: at least 1 are needed")


# --- numbers -----------------------------------------------------------------------------------------------------


def _finite(values: Iterable[float]) -> list[float]:
    numbers = [float(value) for value in values]
    for number in numbers:
        if not math.isfinite(number):
            raise ValueError(f"a value is {number}")
    return numbers


def _moments(values: Sequence[float]) -> tuple[float, float]:
    """Mean and variance (0 for one value); both exact for equal values."""
    offsets = [value - values[0] for value in values]
    centre = fmean(offsets)
    squares = sum((offset - centre) ** 2 for offset in offsets)
    return values[0] + centre, squares / (len(values) - 1) if len(values) > 1 else 0.0


def _largest(values: Sequence[float]) -> float:
    return max(abs(value) for value in values)


def _exp(value: float) -> float:
    return math.exp(min(value, LOG_LARGEST))


def _clamp(value: float) -> float:
    return min(max(value, -sys.float_info.max), sys.float_info.max)
