"""What to run: for live chat, for an API service, for offline work, and within limits of the user's own.

Goodput decides (requests/s within every limit, DistServe, Zhong et al. 2024), for offline work tokens/s. Settings that
cannot be told apart by it are told apart by latency from arrival; of those that tie there too the simplest is named:
the smallest batch, the shortest window. Limits that nobody gave are scaled to what one request alone takes on this
machine, because nothing can be faster, and a multiple of it is what waiting for others may cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from knee.lab.judgement.commands import commands
from knee.lab.judgement.doubts import SPARE
from knee.lab.judgement.knee_point import LEAST_PAIRS, best_and_tied, names, three_digits
from knee.lab.judgement.measured import CellRows
from knee.lab.messages import text
from knee.lab.metrics import by_round, effects, interval_of
from knee.lab.records import Record
from knee.lab.slo import Slo, within
from knee.lab.sweep_records import Against, Interval, Recommendation, Recommendations, Solo, SweepCell

Scenario = Literal["chat", "api", "offline", "slo"]

CHAT_TTFT, CHAT_TPOT, API_E2EL = 3.0, 2.0, 4.0  # times what one request alone takes
_CLOSE = 0.10  # a simpler setting is named only if its median is as near to the best
_PREFERRED = ("continuous", "dynamic", "static", "single")
_SHOWN = ("output_throughput", "e2el_ms", "ttft_ms")


@dataclass(frozen=True)
class Candidate:
    """A cell with its rows and its numbers."""

    rows: CellRows
    cell: SweepCell

    @property
    def simplicity(self) -> tuple[int, float, int]:
        """Smaller is simpler."""
        policy = self.cell.policy
        order = _PREFERRED.index(policy) if policy in _PREFERRED else len(_PREFERRED)
        return self.cell.max_batch_size, self.cell.max_wait_ms or 0.0, order


def recommend(
    candidates: Sequence[Candidate], record: Record, solo: Solo | None, slo: Mapping[str, float] | None
) -> Recommendations:
    """An answer for each kind of use, which may be that there is none."""
    case = _Case(candidates, record)
    chat = (
        {"ttft": CHAT_TTFT * solo.ttft_ms} | ({"tpot": CHAT_TPOT * solo.tpot_ms} if solo.tpot_ms else {})
        if solo
        else None
    )
    api = {"e2el": API_E2EL * solo.e2el_ms} if solo else None
    return Recommendations(
        chat=case.within_limits("chat", chat, _chat_how(solo)),
        api=case.within_limits("api", api, _api_how(solo)),
        offline=case.throughput(),
        slo=case.within_limits("slo", dict(slo), text("en", "answer.limits_given")) if slo else None,
    )


def _chat_how(solo: Solo | None) -> str | None:
    if solo is None:
        return None
    pace = f"{solo.tpot_ms:.1f}" if solo.tpot_ms else "—"
    return text(
        "en", "answer.limits_chat", ttft=f"{CHAT_TTFT:g}", tpot=f"{CHAT_TPOT:g}", first=f"{solo.ttft_ms:.1f}", pace=pace
    )


def _api_how(solo: Solo | None) -> str | None:
    if solo is None:
        return None
    return text(
        "en",
        "answer.limits_api",
        times=f"{API_E2EL:g}",
        whole=f"{solo.e2el_ms:.0f}",
        prompt=solo.prompt_tokens,
        tokens=solo.tokens,
    )


@dataclass(frozen=True)
class _Choice:
    """The best of some cells, who ties with it in the end, and its objective in each round."""

    chosen: Candidate
    tied: list[Candidate]
    rounds: Mapping[int, float]


@dataclass(frozen=True)
class _Case:
    """The candidates of a sweep, and the run they come from."""

    candidates: Sequence[Candidate]
    record: Record

    # --- the two objectives --------------------------------------------------------------------------------------

    def within_limits(self, scenario: Scenario, limits: dict[str, float] | None, how: str | None) -> Recommendation:
        """Most requests/s within the limits."""
        if limits is None:
            return self._none(scenario, "goodput", None, None, text("en", "answer.no_solo"))
        slo = Slo(limits)
        if not any(within(one.rows.all_requests, slo) for one in self.candidates):
            return self._none(scenario, "goodput", limits, how, self._none_within())
        rounds = {one.cell.cell: _goodput(one, slo, half=0.5) for one in self.candidates}
        choice = self._choose(rounds)
        if choice is None:
            return self._none(scenario, "goodput", limits, how, self._too_few())
        plain = list(_goodput(choice.chosen, slo, half=0.0).values())
        if not median(plain):
            return self._none(scenario, "goodput", limits, how, self._none_within())
        share = within(choice.chosen.rows.all_requests, slo)
        return self._found(scenario, "goodput", limits, how, choice, _interval(plain, self.record.workload.seed), share)

    def throughput(self) -> Recommendation:
        """Most tokens/s."""
        rounds = {one.cell.cell: by_round(one.cell, "output_throughput") for one in self.candidates}
        able = {number: values for number, values in rounds.items() if values}
        if not able:
            return self._none("offline", "output_throughput", None, None, text("en", "answer.no_solo"))
        best, tied = best_and_tied(able, higher_is_better=True)
        if self._arrivals_decide and self._had_time_to_spare(best, everything_ties=len(tied) == len(able) - 1):
            reason = text("en", "answer.arrivals_decide", arrival=self.record.workload.arrival)
            return self._none("offline", "output_throughput", None, None, reason)
        choice = self._choose(able)
        if choice is None:
            return self._none("offline", "output_throughput", None, None, self._too_few())
        value = choice.chosen.cell.intervals.get("output_throughput")
        return self._found("offline", "output_throughput", None, None, choice, value, None)

    # --- choosing ------------------------------------------------------------------------------------------------

    def _choose(self, objective: Mapping[int, Mapping[int, float]]) -> _Choice | None:
        """By the objective, then by latency, then the simplest. None with too few rounds to tell anything apart."""
        by_number = {one.cell.cell: one for one in self.candidates}
        if max(map(len, objective.values())) < LEAST_PAIRS and len(objective) > 1:
            return None
        best, tied = best_and_tied(objective, higher_is_better=True)
        latencies = {number: by_round(by_number[number].cell, "e2el_ms") for number in (best, *tied)}
        able = {number: rounds for number, rounds in latencies.items() if rounds}
        quickest, as_quick = best_and_tied(able, higher_is_better=False) if able else (best, tied)
        level = median(able[quickest].values()) if able else 0.0
        near = [number for number in as_quick if not able or median(able[number].values()) <= level * (1 + _CLOSE)]
        chosen = min((quickest, *near), key=lambda number: by_number[number].simplicity)
        others = [by_number[number] for number in (quickest, *as_quick) if number != chosen]
        return _Choice(by_number[chosen], others, objective[chosen])

    def _had_time_to_spare(self, best: int, everything_ties: bool) -> bool:
        """Whether the best setting's throughput was that of the arrivals: it ran nothing for some of the time."""
        why = next(one.cell.explanation for one in self.candidates if one.cell.cell == best)
        spare = 0.0 if why is None else why.shares.idle + why.shares.held_back
        return spare > SPARE or (everything_ties and len(self.candidates) > 1)

    @property
    def _arrivals_decide(self) -> bool:
        return self.record.workload.arrival.partition(":")[0] in ("rate", "poisson", "gamma", "trace")

    def _base(self, chosen: Candidate) -> Candidate | None:
        """The same policy at its smallest batch and window, if that is 1 or nothing smaller was measured."""
        others = [one for one in self.candidates if one is not chosen]
        same = [one for one in others if one.cell.policy == chosen.cell.policy]
        ones = [one for one in [*same, *others] if one.cell.max_batch_size == 1]
        smaller = [one for one in same if one.cell.max_batch_size < chosen.cell.max_batch_size]
        if ones and chosen.cell.max_batch_size > 1:
            return min(ones, key=lambda one: (one.cell.policy != chosen.cell.policy, one.simplicity))
        return min(smaller, key=lambda one: one.simplicity) if smaller else None

    # --- saying it -----------------------------------------------------------------------------------------------

    def _found(
        self,
        scenario: Scenario,
        objective: Literal["goodput", "output_throughput"],
        limits: dict[str, float] | None,
        how: str | None,
        choice: _Choice,
        value: Interval | None,
        share: float | None,
    ) -> Recommendation:
        cell, base = choice.chosen.cell, self._base(choice.chosen)
        against = (
            None
            if base is None
            else Against(cell=base.cell.cell, label=base.cell.label, effects=effects(base.cell, cell, _SHOWN))
        )
        return Recommendation(
            scenario=scenario,
            objective=objective,
            limits=limits,
            limits_how=how,
            verdict="tied" if choice.tied else "clear",
            cell=cell.cell,
            label=cell.label,
            tied=sorted(one.cell.cell for one in choice.tied),
            value=value,
            within=share,
            against=against,
            sentence=_sentence(objective, choice, value, share, against),
            commands=commands(self.record, cell.policy, cell.max_batch_size, cell.max_wait_ms),
        )

    def _none(
        self,
        scenario: Scenario,
        objective: Literal["goodput", "output_throughput"],
        limits: dict[str, float] | None,
        how: str | None,
        why: str,
    ) -> Recommendation:
        return Recommendation(
            scenario=scenario,
            objective=objective,
            limits=limits,
            limits_how=how,
            verdict="cannot_tell",
            cell=None,
            label=None,
            tied=[],
            value=None,
            within=None,
            against=None,
            sentence=why,
            commands={},
        )

    def _too_few(self) -> str:
        repeats = max(len(one.cell.repeats) for one in self.candidates)
        return text("en", "answer.too_few", repeats=repeats, enough=LEAST_PAIRS)

    def _none_within(self) -> str:
        if not self.record.workload.arrival.startswith("burst"):
            return text("en", "answer.none_within", best=self._nearest())
        most = max(one.cell.request_throughput for one in self.candidates)
        return text("en", "answer.none_within_burst", best=self._nearest(), rate=f"{most / 2:.2g}")

    def _nearest(self) -> str:
        return min(self.candidates, key=lambda one: one.cell.e2el_ms.mean or float("inf")).cell.label


def _goodput(candidate: Candidate, slo: Slo, half: float) -> dict[int, float]:
    """Requests/s within the limits in each round; `half` a request more, so that none can be compared with some."""
    durations = {repeat.repeat: repeat.duration_s for repeat in candidate.cell.repeats}
    return {
        repeat: (sum(map(slo.met_by, rows)) + half) / durations[repeat]
        for repeat, rows in candidate.rows.requests.items()
        if durations[repeat]
    }


def _interval(values: Sequence[float], seed: int) -> Interval | None:
    return interval_of(values, seed) if values else None


def _sentence(
    objective: str, choice: _Choice, value: Interval | None, share: float | None, against: Against | None
) -> str:
    tie = "tied" if choice.tied else "clear"
    compared = "alone" if against is None else "against"
    key = "goodput" if objective == "goodput" else "throughput"
    changes = {} if against is None else {name: _change(against, name) for name in _SHOWN}
    return text(
        "en",
        f"answer.{key}_{tie}_{compared}",
        cell=choice.chosen.cell.label,
        tied=names([one.cell.label for one in choice.tied]),
        value=_number(value),
        within="—" if share is None else f"{share * 100:.0f}",
        base="" if against is None else against.label,
        throughput=changes.get("output_throughput", ""),
        latency=changes.get("e2el_ms", ""),
        ttft=changes.get("ttft_ms", ""),
    )


def _number(value: Interval | None) -> str:
    if value is None:
        return "—"
    if value.low is None or value.high is None:
        return three_digits(value.value)
    return f"{three_digits(value.value)} [{three_digits(value.low)}, {three_digits(value.high)}]"


def _change(against: Against, name: str) -> str:
    effect = against.effects.get(name)
    if effect is None or effect.change is None:
        return "—"
    if effect.low is None or effect.high is None:
        return f"{effect.change * 100:+.0f} %"
    return f"{effect.change * 100:+.0f} % [{effect.low * 100:+.0f}, {effect.high * 100:+.0f}]"
