"""Each claim is supported, refuted or left open by rows made to do so; what was not measured names what measures it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import pytest

from knee.lab import words_claims
from knee.lab.judgement.claims import claims
from knee.lab.messages import text, translated
from knee.lab.records import Record, RequestRow, StepRow
from knee.lab.sweep_records import Claim, RepeatTotals, Solo, SweepCell, TrialRow, WarmStep
from tests.lab.samples import BASELINE, INSPECT, KVCACHE, METRICS, SWEEP, record, summary, sweep_cell

CODES = {
    "latency_is_service",
    "batching_trades_latency",
    "throughput_grows_with_batch",
    "batch8_faster_than_4",
    "window_helps",
    "window_hurts",
    "prefill_costs_more",
    "cold_is_steady",
    "decode_independent_of_kv",
    "kv_cache_pays_from",
    "padding_free",
    "gpu_gains_more",
}
CLEAR, LOOSE = 0.01, 0.5  # how far the repeats of a cell lie apart: a verdict can be had, and cannot
Values = Mapping[str, float]


# --- records to ask ----------------------------------------------------------------------------------------------


def cell(
    number: int, size: int, values: Values, *, window: float = 0.0, spread: float = CLEAR, repeats: int = 5, **more: Any
) -> SweepCell:
    """A cell whose repeats scatter by `spread` around these values."""
    noise = random.Random(number)
    totals = [
        RepeatTotals(
            repeat=repeat,
            duration_s=1.0,
            output_tokens=512,
            values={name: value * (1 + noise.uniform(-spread, spread)) for name, value in values.items()},
        )
        for repeat in range(repeats)
    ]
    changes = {
        "cell": number,
        "label": f"dynamic ({size} / {window:g} ms)",
        "max_batch_size": size,
        "max_wait_ms": window,
        "repeats": totals,
        **{name: summary(value) for name, value in values.items() if name.endswith("_ms")},
    }
    return sweep_cell(size).model_copy(update=changes | more)


def measured(throughput: float, e2el: float, service: float = 100.0) -> Values:
    return {"output_throughput": throughput, "e2el_ms": e2el, "service_ms": service}


def sweep(cells: Sequence[SweepCell], trials: Sequence[TrialRow] = (), **more: Any) -> Record:
    metrics = SWEEP.model_copy(update={"cells": list(cells), "trials": list(trials), **more})
    return record("sweep", metrics=metrics)


def baseline(cold: float, warm: Sequence[float], steps: Sequence[float] = (4.5,) * 9) -> Record:
    values = {"prefill_cold_ms": cold, "prefill_runs_ms": list(warm), "decode_step_ms": list(steps)}
    return record("baseline", metrics=BASELINE.model_copy(update=values))


def about(code: str, asked: Record, requests: Sequence[RequestRow] = (), steps: Sequence[StepRow] = ()) -> Claim:
    """The only claim of this kind."""
    [found] = [claim for claim in claims(asked, requests, steps) if claim.code == code]
    return found


def near(value: float, count: int, spread: float = CLEAR, seed: int = 0) -> list[float]:
    noise = random.Random(seed)
    return [value * (1 + noise.uniform(-spread, spread)) for _ in range(count)]


# --- every record ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", METRICS)
def test_every_record_is_asked_everything(kind: str) -> None:
    found = claims(record(kind), [], [])
    assert {claim.code for claim in found} == CODES
    for claim in found:
        assert (claim.verdict == "not_measured") == ("`knee " in claim.sentence)


def test_a_run_without_metrics_supports_nothing() -> None:
    assert claims(record("sweep", done=False), [], []) == []


def test_an_old_sweep_without_values_of_its_repeats_says_so() -> None:
    old = sweep([sweep_cell(4), sweep_cell(8)])
    found = {claim.code: claim for claim in claims(old, [], [])}
    for code in ("batch8_faster_than_4", "throughput_grows_with_batch", "latency_is_service"):
        assert found[code].verdict == "not_measured"
        assert "keeps no values of single repeats" in found[code].sentence


def test_a_gpu_is_not_measured_on_a_cpu() -> None:
    assert "on device cpu: `knee sweep` on a machine with a GPU" in about("gpu_gains_more", baseline(9, [9])).sentence


# --- batch sizes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("eight", "spread", "verdict"),
    [
        (measured(300, 700), CLEAR, "supported"),
        (measured(300, 1100), CLEAR, "refuted"),
        (measured(300, 1010), LOOSE, "cannot_tell"),
    ],
)
def test_batch_8_beats_batch_4_by_the_latency_from_arrival(eight: Values, spread: float, verdict: str) -> None:
    four = cell(0, 4, measured(200, 1000), spread=spread)
    found = about("batch8_faster_than_4", sweep([four, cell(1, 8, eight, spread=spread)]))
    assert found.verdict == verdict
    assert found.statement == "With policy dynamic, batch 8 has a lower latency than batch 4."
    assert found.effect is not None
    assert found.effect.n == 5


def test_service_time_that_says_the_opposite_is_named() -> None:
    cells = [cell(0, 4, measured(200, 1000, 100), spread=0), cell(1, 8, measured(300, 700, 180), spread=0)]
    assert about("batch8_faster_than_4", sweep(cells)).sentence == (
        "dynamic (8 / 0 ms) against dynamic (4 / 0 ms): latency from arrival -30 % [-30, -30] (pairs of repeats: 5); "
        "the service time, which leaves out the queue, says the opposite: +80 % [+80, +80]."
    )


def test_too_few_repeats_cannot_tell() -> None:
    cells = [cell(n, size, measured(200, 500 * size), repeats=2) for n, size in enumerate((4, 8))]
    found = about("batch8_faster_than_4", sweep(cells))
    assert (found.verdict, found.effect and found.effect.low) == ("cannot_tell", None)
    assert "(pairs of repeats: 2)" in found.sentence


@pytest.mark.parametrize(
    ("eight", "spread", "verdict"),
    [
        (measured(400, 1500), CLEAR, "supported"),
        (measured(400, 700), CLEAR, "refuted"),  # wins both
        (measured(100, 1500), CLEAR, "refuted"),  # pays and gets nothing
        (measured(210, 1010), LOOSE, "cannot_tell"),
    ],
)
def test_a_trade_gains_throughput_and_pays_with_latency(eight: Values, spread: float, verdict: str) -> None:
    cells = [
        cell(0, 1, measured(200, 1000), spread=spread),
        cell(1, 4, measured(200, 1000), spread=spread),
        cell(2, 8, eight, spread=spread),
    ]
    found = about("batching_trades_latency", sweep(cells))
    assert found.verdict == verdict
    assert found.sentence.startswith("dynamic (8 / 0 ms) against dynamic (1 / 0 ms): throughput ")


def test_a_policy_without_batch_1_is_held_against_single() -> None:
    cells = [
        cell(0, 1, measured(200, 1000), policy="single", label="single (1)", max_wait_ms=None),
        cell(1, 8, measured(400, 700), policy="continuous", label="continuous (8)", max_wait_ms=None),
    ]
    found = about("batching_trades_latency", sweep(cells))
    assert found.sentence.startswith("continuous (8) against single (1): ")


@pytest.mark.parametrize(
    ("throughputs", "spread", "verdict", "said"),
    [
        ((100, 200, 300), 0, "supported", "From batch 1 to 8 throughput changed by +200 % [+200, +200]"),
        ((100, 300, 200), 0, "refuted", "From batch 4 to 8 throughput changed by -33 % [-33, -33]"),
        ((100, 300, 301), 0.1, "cannot_tell", "From batch 4 to 8 throughput changed by"),
    ],
)
def test_throughput_grows_only_if_every_step_up_gains(
    throughputs: Sequence[float], spread: float, verdict: str, said: str
) -> None:
    sizes = zip((1, 4, 8), throughputs, strict=True)
    cells = [cell(n, size, measured(value, 500), spread=spread) for n, (size, value) in enumerate(sizes)]
    found = about("throughput_grows_with_batch", sweep(cells))
    assert (found.verdict, found.sentence[: len(said)]) == (verdict, said)
    assert "1→4 +" in found.sentence


@pytest.mark.parametrize("code", ["batch8_faster_than_4", "batching_trades_latency", "throughput_grows_with_batch"])
def test_one_batch_size_compares_nothing(code: str) -> None:
    found = about(code, sweep([cell(0, 4, measured(200, 1000))]))
    assert found.verdict == "not_measured"
    assert "`knee sweep --batch-sizes " in found.sentence


# --- wait windows ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latency", "spread", "helps", "hurts"),
    [
        (700, CLEAR, "supported", "refuted"),
        (1300, CLEAR, "refuted", "supported"),
        (1010, LOOSE, "cannot_tell", "cannot_tell"),
    ],
)
def test_a_window_helps_or_hurts_or_cannot_be_told(latency: float, spread: float, helps: str, hurts: str) -> None:
    cells = [
        cell(0, 4, measured(200, 1000), window=0.0, spread=spread),
        cell(1, 4, measured(200, latency), window=10.0, spread=spread),
        cell(2, 4, measured(200, 1000), window=50.0, spread=spread),
    ]
    asked = sweep(cells)
    assert (about("window_helps", asked).verdict, about("window_hurts", asked).verdict) == (helps, hurts)
    assert about("window_helps", asked).sentence.startswith("dynamic (4 / 10 ms) against dynamic (4 / 0 ms): ")


def test_a_window_that_never_waited_cannot_matter() -> None:
    cells = [
        cell(0, 4, measured(200, 1000), window=0.0, window_idle=True),
        cell(1, 4, measured(200, 700), window=10.0, window_idle=True),
    ]
    for code in ("window_helps", "window_hurts"):
        found = about(code, sweep(cells))
        assert (found.verdict, found.effect) == ("refuted", None)
        assert found.sentence == (
            "It could not matter: at batch 4, with 10 ms as with 0 ms, every batch was full, or the last, when it "
            "started."
        )


def test_windows_are_asked_about_at_each_batch_size() -> None:
    cells = [
        cell(n, size, measured(200, 1000), window=window)
        for n, (size, window) in enumerate([(1, 0.0), (1, 5.0), (8, 0.0), (8, 5.0)])
    ]
    statements = [claim.statement for claim in claims(sweep(cells), [], []) if claim.code == "window_helps"]
    assert statements == [
        f"At batch {size}, a wait window of 5 ms instead of 0 ms lowers the latency." for size in (1, 8)
    ]


# --- what is counted ---------------------------------------------------------------------------------------------


def test_latency_is_service_where_nobody_waits() -> None:
    supported = sweep([cell(0, 8, measured(200, 101, 100), spread=0)])
    refuted = sweep([cell(0, 8, measured(200, 101, 100), spread=0), cell(1, 1, measured(200, 900, 100), spread=0)])
    open_ = sweep([cell(0, 8, measured(200, 104, 100), spread=LOOSE)])
    found = [about("latency_is_service", asked) for asked in (supported, refuted, open_)]
    assert [claim.verdict for claim in found] == ["supported", "refuted", "cannot_tell"]
    assert found[1].sentence == (
        "In dynamic (1 / 0 ms) a request took 900.0 ms from its arrival to the last token, of which 100.0 ms were "
        "service: +800 % [+800, +800] against the service time (repeats: 5)."
    )


def test_cells_that_give_the_same_tokens_do_not_pad() -> None:
    cells = [cell(0, 1, measured(200, 1000)), cell(1, 8, measured(400, 700))]
    same, differ = about("padding_free", sweep(cells)), about("padding_free", sweep(cells, same_tokens=False))
    assert (same.verdict, differ.verdict) == ("supported", "refuted")
    assert "same tokens in all 2 cells, 512 tokens a trial" in same.sentence
    assert about("padding_free", sweep(cells[:1])).verdict == "not_measured"


# --- prefill and decode ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token", "spread", "verdict"),
    [(9.0, CLEAR, "supported"), (1.5, CLEAR, "refuted"), (4.6, LOOSE, "cannot_tell")],
)
def test_a_warm_prompt_token_is_held_against_a_decode_step(token: float, spread: float, verdict: str) -> None:
    found = about("prefill_costs_more", baseline(434.26, near(13 * token, 5, spread), near(4.5, 9, spread)))
    assert found.verdict == verdict
    assert "The first, cold prefill took 33.4 ms a token, which is another number." in found.sentence
    assert "not the luck of that process" in found.sentence


def trial(
    number: int, token: float = 0.0, step: float = 4.5, warm_up: Sequence[WarmStep] = (), **more: Any
) -> TrialRow:
    """A trial whose request alone took this long a prompt token and a decode step; 0: it had none."""
    solo = Solo(prompt_tokens=10, tokens=32, ttft_ms=10 * token, tpot_ms=step, e2el_ms=200.0) if token else None
    values = {"cell": 0, "repeat": number, "started_at": "2025-01-31T12:34:56+00:00", "seconds": 3.0}
    return TrialRow(**{**values, "solo": solo, "warm_up": list(warm_up), **more})


@pytest.mark.parametrize(
    ("token", "spread", "verdict"),
    [(9.0, CLEAR, "supported"), (1.5, CLEAR, "refuted"), (4.6, LOOSE, "cannot_tell")],
)
def test_of_a_sweep_the_request_alone_tells_what_a_prompt_token_costs(
    token: float, spread: float, verdict: str
) -> None:
    trials = [trial(number, ms, 4.5) for number, ms in enumerate(near(token, 6, spread))]
    void = trial(6, 1e6, 1e-6, void=True)
    found = about("prefill_costs_more", sweep([cell(0, 1, measured(200, 1000))], [*trials, void]))
    assert found.verdict == verdict
    assert found.effect is not None
    assert found.effect.n == 6


def test_of_a_sweep_without_such_requests_the_warm_steps_tell() -> None:
    cells = [cell(0, 1, measured(200, 1000), repeats=5)]
    steps = []
    for repeat in range(5):
        cold, warm = step(repeat, 0, 900.0, prefill=10), step(repeat, 1, 20.0 + 0.1 * repeat, prefill=10)
        mixed = step(repeat, 2, 500.0, prefill=10, rows=1)
        steps += [cold, warm, mixed, *(step(repeat, number, 4.0, rows=1, kv=11) for number in (3, 4, 5))]
    found = about("prefill_costs_more", sweep(cells), [], steps)
    assert found.verdict == "refuted"
    assert found.sentence.startswith(
        "Warm steps took 2.02 ms a prompt token, and 4.00 ms for a decode step of one row: "
    )


@pytest.mark.parametrize(
    ("cold", "warm", "verdict"),
    [
        (100.5, [99.0, 100.0, 101.0, 100.0, 100.0], "supported"),
        (434.3, [91.0, 92.0, 93.0, 92.0, 91.5], "refuted"),
        (108.0, [90.0, 100.0, 110.0, 95.0, 105.0], "cannot_tell"),
        (434.3, [91.0, 92.0, 93.0], "cannot_tell"),  # too few for an interval
    ],
)
def test_a_cold_prefill_is_held_against_all_warm_ones(cold: float, warm: list[float], verdict: str) -> None:
    found = about("cold_is_steady", baseline(cold, warm))
    assert found.verdict == verdict
    assert f"{len(warm)} warm ones" in found.sentence


def warm_up(*shapes: tuple[float, int, int]) -> list[WarmStep]:
    return [WarmStep(ms=ms, prefill_tokens=prefill, decode_rows=rows) for ms, prefill, rows in shapes]


@pytest.mark.parametrize(
    ("cold", "spread", "verdict"), [(50.0, 0.0, "supported"), (200.0, CLEAR, "refuted"), (54.0, LOOSE, "cannot_tell")]
)
def test_a_first_step_is_held_against_later_ones_of_its_shape(cold: float, spread: float, verdict: str) -> None:
    trials = [
        trial(number, warm_up=warm_up((ms, 512, 0), (50.0, 512, 0), (50.0, 512, 0), (5.0, 0, 8)))
        for number, ms in enumerate(near(cold, 6, spread))
    ]
    assert about("cold_is_steady", sweep([cell(0, 8, measured(200, 1000))], trials)).verdict == verdict


def test_steps_of_different_shapes_are_not_compared() -> None:
    trials = [trial(0, warm_up=warm_up((900.0, 100, 0), (5.0, 0, 8)))]
    found = about("cold_is_steady", sweep([cell(0, 8, measured(200, 1000))], trials))
    assert found.verdict == "not_measured"
    assert "other shapes are other work" in found.sentence


# --- the KV cache ------------------------------------------------------------------------------------------------


def step(repeat: int, number: int, ms: float, *, prefill: int = 0, rows: int = 0, kv: int = 0, **more: Any) -> StepRow:
    values = {"cell": 0, "repeat": repeat, "step": number, "started_at": float(number), "ms": ms, "host_ms": 0.1}
    values |= {"prefill_tokens": prefill, "decode_rows": rows, "kv_tokens": kv, "waiting": 0, "batch_size": rows or 1}
    return StepRow(**{**values, **more})


def decoding(time: Callable[[int], float], spread: float, repeats: int = 5, **more: Any) -> list[StepRow]:
    """In every repeat, steps of 4 rows whose requests have 20 to 119 tokens each."""
    return [
        step(repeat, number, time(context) * factor, rows=4, kv=4 * context, **more)
        for repeat in range(repeats)
        for number, (context, factor) in enumerate(zip(range(18, 120), near(1.0, 102, spread, repeat), strict=True))
    ]


def flat(_context: int) -> float:
    return 5.0


def growing(context: int) -> float:
    return 5.0 + 0.02 * (context - 20)  # from 5 to 7 ms


@pytest.mark.parametrize(
    ("time", "spread", "verdict"),
    [(flat, CLEAR, "supported"), (growing, CLEAR, "refuted"), (flat, LOOSE, "cannot_tell")],
)
def test_a_decode_step_of_a_sweep_is_looked_at_over_its_contexts(
    time: Callable[[int], float], spread: float, verdict: str
) -> None:
    asked = sweep([cell(0, 4, measured(200, 1000))])
    found = about("decode_independent_of_kv", asked, [], decoding(time, spread))
    assert found.verdict == verdict
    assert found.sentence.startswith("Between 20 and 119 tokens of context a decode step of 4 rows changed by ")


def test_the_effect_is_the_change_over_the_measured_contexts() -> None:
    asked = sweep([cell(0, 4, measured(200, 1000))])
    found = about("decode_independent_of_kv", asked, [], decoding(growing, 0.0))
    assert found.effect is not None
    assert found.effect.change == pytest.approx(0.02 * 99 / 5.0)
    assert found.effect.n == 5


def test_a_size_of_which_too_few_trials_had_steps_does_not_decide() -> None:
    asked = sweep([cell(0, 4, measured(200, 1000))])
    rare = [one.model_copy(update={"decode_rows": 3}) for one in decoding(growing, 0.0, repeats=1)[:50]]
    found = about("decode_independent_of_kv", asked, [], [*decoding(flat, CLEAR)[50:], *rare])
    assert (found.verdict, "a decode step of 4 rows" in found.sentence) == ("supported", True)


def test_trials_that_do_not_count_are_not_looked_at() -> None:
    asked = sweep([cell(0, 4, measured(200, 1000))])
    void, cut_off = decoding(flat, 0.0, void=True), decoding(flat, 0.0, cell=7)
    assert about("decode_independent_of_kv", asked, [], [*void, *cut_off]).verdict == "not_measured"


def kvcache(on: Callable[[int], float], off: Callable[[int], float], spread: float, pays: int | None = 11) -> Record:
    """Prompts of 10 and 200 tokens, 50 new ones each."""
    cells = []
    for number, given in enumerate(KVCACHE.cells):
        time = on if given.kv_cache == "on" else off
        noise = near(1.0, 50, spread, number)
        times = [time(given.prompt_length + n) * factor for n, factor in enumerate(noise)]
        steps = {"token_ms": times, "decode_ms_per_step": fmean(times[1:])}
        cells.append(given.model_copy(update=steps))
    return record("kvcache", metrics=KVCACHE.model_copy(update={"cells": cells, "pays_from_tokens": pays}))


def recomputed(context: int) -> float:
    return 2.0 * context


@pytest.mark.parametrize(
    ("on", "spread", "verdict"),
    [(flat, CLEAR, "supported"), (growing, CLEAR, "refuted"), (flat, LOOSE, "cannot_tell")],
)
def test_a_decode_step_of_one_process_is_looked_at_over_its_contexts(
    on: Callable[[int], float], spread: float, verdict: str
) -> None:
    found = about("decode_independent_of_kv", kvcache(on, recomputed, spread))
    assert found.verdict == verdict
    assert found.sentence.startswith("Between 11 and 249 tokens of context a decode step changed by ")
    assert "over 98 steps" in found.sentence
    assert "not the luck of that process" in found.sentence


def test_other_experiments_look_at_their_decode_steps_too_if_there_are_enough() -> None:
    [only] = INSPECT.steps
    steps = [only.model_copy(update={"ms": 4.0, "kv_len": 14 + n}) for n in range(80)]
    inspected = record("inspect", metrics=INSPECT.model_copy(update={"steps": steps}))
    assert about("decode_independent_of_kv", inspected).verdict == "supported"
    assert about("decode_independent_of_kv", baseline(9, [9], near(4.0, 80))).verdict == "supported"
    assert about("decode_independent_of_kv", baseline(9, [9], near(4.0, 9))).verdict == "not_measured"


def test_contexts_that_hardly_differ_do_not_show_that_length_does_not_matter() -> None:
    assert about("decode_independent_of_kv", baseline(9, [9], near(4.0, 30))).verdict == "cannot_tell"


def test_with_the_cache_off_a_decode_step_says_nothing_about_it() -> None:
    asked = baseline(9, [9], near(4.0, 40)).model_copy(update={"kv_cache": "off"})
    assert about("decode_independent_of_kv", asked).verdict == "not_measured"


@pytest.mark.parametrize(
    ("off", "spread", "pays", "verdict"),
    [
        (recomputed, CLEAR, 11, "supported"),
        (lambda _: 3.0, CLEAR, None, "refuted"),
        (lambda _: 3.0, CLEAR, 11, "refuted"),  # one lucky step
        (flat, LOOSE, 11, "cannot_tell"),
    ],
)
def test_the_cache_pays_where_its_steps_are_faster(
    off: Callable[[int], float], spread: float, pays: int | None, verdict: str
) -> None:
    found = about("kv_cache_pays_from", kvcache(flat, off, spread, pays))
    assert found.verdict == verdict
    from_here = "" if pays is None else " from a context of 11 tokens on"
    assert found.statement == f"The KV cache makes decode steps faster{from_here}."


def test_the_cache_pays_sentence_has_both_ends() -> None:
    assert about("kv_cache_pays_from", kvcache(flat, recomputed, 0.0)).sentence == (
        "From 11 tokens of context on a decode step took 5.00 ms with the cache and 30.0 ms without: -83 % [-85, -80]; "
        "up to 249 tokens it took 5.00 against 490.0 ms. The interval covers the noise between the steps of one "
        "process, not the luck of that process."
    )


# --- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [key for key in words_claims.WORDS if key.startswith("claim.")])
def test_every_sentence_is_found_again_in_chinese_with_its_numbers(key: str) -> None:
    values = dict.fromkeys(("latency", "service", "throughput", "change"), "+12 % [+9, +15]")
    values |= dict.fromkeys(("token", "step", "cold", "warm", "on", "off", "far_on", "far_off"), "5.00")
    values |= dict.fromkeys(("n", "size", "rows", "low", "high", "near", "far", "cells", "requests"), "12")
    values |= {"tokens": "512, 513", "window": "10", "without": "0", "command": "knee sweep --batch-sizes 4,8"}
    values |= {"a": "dynamic (4 / 0 ms)", "b": "dynamic (8 / 0 ms)", "cell": "static (8)", "policy": "dynamic"}
    values |= {"steps": "1→4 +98 %, 4→8 +1 %", "device": "cpu"}
    english, chinese = (text(lang, key, **values) for lang in ("en", "zh"))
    assert translated("zh", english) == chinese != english


def test_every_claim_that_is_made_can_be_read_in_chinese() -> None:
    cells = [cell(n, size, measured(100 * size, 1000)) for n, size in enumerate((1, 4, 8))]
    records = [baseline(434, near(92, 5)), kvcache(flat, recomputed, CLEAR), sweep(cells), record("inspect")]
    for asked in records:
        for claim in claims(asked, [], []):
            assert translated("zh", claim.statement) != claim.statement
            assert translated("zh", claim.sentence) != claim.sentence
