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
        sentence=_sentence(by_number, best, tied, power, crossing),
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


def _sentence(
    cells: Mapping[int, SweepCell], best: int, tied: Sequence[int], power: Interval, crossing: float | None
) -> str:
    verdict = "too_few" if power.n < LEAST_PAIRS else "tied" if tied else "clear"
    roof = "unknown" if crossing is None else "known"
    values = {
        "cell": cells[best].label,
        "power": f"{power.value:.2f}",
        "tied": names([cells[number].label for number in tied]),
        "batch": "?" if crossing is None else f"{crossing:.0f}",
        "repeats": power.n,
    }
    return text("en", f"answer.knee_{verdict}_{roof}", **values) if len(cells) > 1 else text("en", "answer.knee_only")


def names(labels: Sequence[str], most: int = 6) -> str:
    """Labels in a row, the rest counted."""
    rest = len(labels) - most
    return ", ".join(labels[:most]) + (f" … (+{rest})" if rest > 0 else "")
