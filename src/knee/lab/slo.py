"""Service-level objectives: limits on a request's latencies, and the requests a second that keep within all of them.

Goodput as in DistServe (Zhong et al. 2024). Pure functions over rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from knee.errors import UserError
from knee.lab.metrics import COMPLETED, e2el_ms, tpot_ms, ttft_ms
from knee.lab.records import RequestRow

_LATENCIES: Mapping[str, Callable[[RequestRow], float | None]] = {"ttft": ttft_ms, "tpot": tpot_ms, "e2el": e2el_ms}
_FORM = "the form is ttft:200,tpot:50,e2el:2000 (ms)"


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in milliseconds by the name of the latency."""

    limits: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Slo:
        """From `ttft:200,tpot:50,e2el:2000`, any of them. Raises `UserError`."""
        limits: dict[str, float] = {}
        for part in text.split(","):
            name, _, number = part.strip().partition(":")
            if name not in _LATENCIES:
                raise UserError(f"there is no limit on {name!r}: knee knows {', '.join(_LATENCIES)}; {_FORM}")
            if name in limits:
                raise UserError(f"the limit on {name} is given twice")
            limits[name] = _limit(name, number)
        return cls(limits)

    def met_by(self, row: RequestRow) -> bool:
        """Whether a request ended well and within every limit; a one-token output has no tpot to exceed."""
        values = [(_LATENCIES[name](row), limit) for name, limit in self.limits.items()]
        return row.finish_reason in COMPLETED and all(value is None or value <= limit for value, limit in values)


def _limit(name: str, number: str) -> float:
    try:
        limit = float(number)
    except ValueError:
        raise UserError(f"the limit on {name} is {number!r}: {_FORM}") from None
    if not 0 < limit < float("inf"):
        raise UserError(f"the limit on {name} is {number} ms: it must be a finite number above 0")
    return limit


def within(rows: Sequence[RequestRow], slo: Slo) -> float:
    """The share of requests within all limits."""
    return sum(map(slo.met_by, rows)) / len(rows) if rows else 0.0
