"""The knee: the setting with the most power, throughput over latency (Kleinrock 1979), and those it ties with.

A difference counts where the paired interval excludes zero and the effect is not negligible: with a few hundred pairs
anything is significant, and nobody changes a server for two percent.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median

from knee.lab.costs import roofline_batch
from knee.lab.messages import text
from knee.lab.metrics import by_round
from knee.lab.statistics import Comparison, compare_paired
from knee.lab.sweep_records import CostModel, Interval, Knee, Limits, StepTime, SweepCell

NEGLIGIBLE = 0.03
LEAST_PAIRS = 3


def find_knee(
    cells: Sequence[SweepCell], costs: CostModel | None, limits: Limits | None, times: Sequence[StepTime]
) -> Knee | None:
    """None where no cell has power: nothing was completed, or nothing took any time."""
    powers = {cell.cell: by_round(cell, "power") for cell in cells}
    able = {number: rounds for number, rounds in powers.items() if rounds}
    if not able:
        return None
    best, tied = best_and_tied(able, higher_is_better=True)
    by_number = {cell.cell: cell for cell in cells}
    batches = sorted({by_number[number].max_batch_size for number in (best, *tied)})
    crossing = _crossing(costs, limits, times)
    power = by_number[best].intervals.get("power") or _without_interval(able[best])
    return Knee(
        cell=best,
        label=by_number[best].label,
        tied=tied,
        power=power,
        found_batches=batches,
        roofline_batch=crossing,
        sentence=_sentence(by_number, best, tied, power, crossing, _next(able, best)),
    )


def best_and_tied(rounds: Mapping[int, Mapping[int, float]], *, higher_is_better: bool) -> tuple[int, list[int]]:
    """The key with the best median over its rounds, and those that cannot be told from it."""
    medians = {key: median(values.values()) for key, values in rounds.items()}
    sign = 1 if higher_is_better else -1
    best = max(medians, key=lambda key: (sign * medians[key], -key))
    others = [key for key in rounds if key != best]
    return best, [key for key in others if not _differs(rounds[best], rounds[key], higher_is_better)]


def _differs(best: Mapping[int, float], other: Mapping[int, float], higher_is_better: bool) -> bool:
    return matters(compare_paired(best, other, higher_is_better=higher_is_better))


def matters(found: Comparison) -> bool:
    """Whether a difference is there, and large enough to care."""
    return found.verdict != "cannot_tell" and found.change is not None and abs(found.change) >= NEGLIGIBLE


def _without_interval(rounds: Mapping[int, float]) -> Interval:
    return Interval(value=median(rounds.values()), low=None, high=None, n=len(rounds))


def _crossing(costs: CostModel | None, limits: Limits | None, times: Sequence[StepTime]) -> float | None:
    if costs is None or limits is None or not times:
        return None
    return roofline_batch(costs, limits, fmean(time.context for time in times))


def _next(rounds: Mapping[int, Mapping[int, float]], best: int) -> tuple[int, float]:
    """The second highest median, and whose it is; the best itself where it is alone."""
    medians = {key: median(values.values()) for key, values in rounds.items() if key != best or len(rounds) == 1}
    second = max(medians, key=lambda key: medians[key])
    return second, medians[second]


def three_digits(value: float) -> str:
    """12.3, 0.0123, 1234: as many digits as mean something."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _sentence(
    cells: Mapping[int, SweepCell],
    best: int,
    tied: Sequence[int],
    power: Interval,
    crossing: float | None,
    second: tuple[int, float],
) -> str:
    verdict = "too_few" if power.n < LEAST_PAIRS else "tied" if tied else "clear"
    roof = "unknown" if crossing is None else "known"
    values = {
        "cell": cells[best].label,
        "power": three_digits(power.value) + _ends(power),
        "second": cells[second[0]].label,
        "less": three_digits(second[1]),
        "tied": names([cells[number].label for number in tied]),
        "batch": "?" if crossing is None else f"{crossing:.0f}",
        "repeats": power.n,
    }
    return text("en", f"answer.knee_{verdict}_{roof}", **values) if len(cells) > 1 else text("en", "answer.knee_only")


def _ends(power: Interval) -> str:
    if power.low is None or power.high is None:
        return ""
    return f" [{three_digits(power.low)}, {three_digits(power.high)}]"


def names(labels: Sequence[str], most: int = 6) -> str:
    """Labels in a row, the rest counted."""
    rest = len(labels) - most
    return ", ".join(labels[:most]) + (f" … (+{rest})" if rest > 0 else "")
