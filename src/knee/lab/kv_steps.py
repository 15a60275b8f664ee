"""Decode steps with the KV cache on and off, side by side, and from which context on the cache pays. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from knee.lab.records import KvCacheCell

_NEIGHBOURS = 9  # steps that a median goes over, so that one slow step does not decide


@dataclass(frozen=True, slots=True)
class StepPair:
    """The same decode step with the cache on and off; `context` tokens are in the prefix that it continues."""

    context: int
    on_ms: float
    off_ms: float


def step_pairs(cells: Sequence[KvCacheCell]) -> list[StepPair]:
    """All decode steps of all lengths, by their context."""
    times = {(cell.prompt_length, cell.kv_cache): cell.token_ms for cell in cells}
    pairs = [
        StepPair(length + number, on, off)
        for length in dict.fromkeys(cell.prompt_length for cell in cells)
        for number, (on, off) in enumerate(zip(times[length, "on"], times[length, "off"], strict=False))
        if number > 0
    ]
    return sorted(pairs, key=lambda pair: pair.context)


def pays_from(pairs: Sequence[StepPair]) -> int | None:
    """The shortest context from which on a step with the cache is faster, up to the longest measured one.

    Each step is judged by the median over its neighbours in context. None where the longest context still does not
    pay, or there is no decode step at all.
    """
    gains = [pair.off_ms - pair.on_ms for pair in pairs]
    half = _NEIGHBOURS // 2
    first = None
    for number in reversed(range(len(pairs))):
        if median(gains[max(0, number - half) : number + half + 1]) <= 0:
            break
        first = pairs[number].context
    return first
