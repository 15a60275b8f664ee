"""Where the time went, worked out by hand; and sentences that say no more than the numbers do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.lab import words_explain
from knee.lab.judgement.explain import decode_steps, explain_cell, explanation, step_times
from knee.lab.judgement.measured import CellRows
from knee.lab.messages import text, translated
from knee.lab.records import RequestRow, StepRow
from knee.lab.spec import CellSetting
from knee.lab.sweep_records import CellExplanation, CostModel, Interval, Knee, Limits, Shares, StepTime, SweepCell
from tests.lab.samples import sweep_cell

# A machine that reads a byte and calculates a FLOP in a millisecond; a step reads 3 bytes and 0.1 for a cached token.
LIMITS = Limits(read_gb_s=1e-6, gflop_s=1e-6, dtype="int8", how="told")
COSTS = CostModel(
    flops_per_token=1.0,
    flops_per_output=0.0,
    flops_per_pair=0.0,
    weight_bytes=3.0,
    weight_bytes_per_token=0.0,
    kv_bytes_per_token=0.0,
    kv_bytes_per_context=0.1,
)


def request(number: int, times: Sequence[float], due: float = 0.0, start: float | None = 0.0) -> RequestRow:
    """A request with a prompt of 4 tokens that got one more at each of these seconds."""
    return RequestRow(
        cell=0,
        repeat=0,
        request=number,
        scheduled_at=due,
        sent_at=due,
        prefill_start=start,
        first_token_at=times[0] if times else None,
        finished_at=times[-1] if times else None,
        prompt_tokens=4,
        output_tokens=len(times),
        finish_reason="length" if times else "error",
        token_ids_sha256="0",
        token_times=list(times),
    )


def step(at: float, ms: float, *, prefill: int = 0, rows: int = 0, kv: int = 0, host: float = 0.0) -> StepRow:
    return StepRow(
        cell=0,
        repeat=0,
        step=0,
        started_at=at,
        ms=ms,
        prefill_tokens=prefill,
        decode_rows=rows,
        kv_tokens=kv,
        waiting=0,
        host_ms=host,
        batch_size=max(1, rows),
    )


def rows_of(requests: Sequence[RequestRow], steps: Sequence[StepRow], size: int = 2, repeats: int = 1) -> CellRows:
    """A cell whose repeats were all the same."""
    setting = CellSetting(policy="dynamic", max_batch_size=size, max_wait_ms=10.0)
    each = range(repeats)
    return CellRows(0, setting, {number: list(requests) for number in each}, {number: list(steps) for number in each})


# Two requests wait 10 ms for company, run together until 0.040; a third one comes at 0.100.
REQUESTS = [
    request(0, [0.0195, 0.0295, 0.0395], start=0.010),
    request(1, [0.0195, 0.0295, 0.0395], start=0.010),
    request(2, [0.1095, 0.1145], due=0.100, start=0.100),
]
STEPS = [
    step(0.010, 10, prefill=8, kv=8, host=2),
    step(0.020, 10, rows=2, kv=10, host=1),
    step(0.032, 8, rows=2, host=1),  # after 2 ms in which nobody waited; both end
    step(0.100, 10, prefill=4, kv=4, host=2),
    step(0.110, 5, rows=1, host=1),  # half a millisecond of it after the last token
]


# --- one cell ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repeats", [1, 3])
def test_the_time_of_a_cell_is_what_its_steps_and_gaps_took(repeats: int) -> None:
    found = explain_cell(rows_of(REQUESTS, STEPS, repeats=repeats), COSTS, LIMITS)
    in_ms = {name: share and share * 114.5 for name, share in found.shares.model_dump().items()}
    floor = 4.0 + 4.2 + 3.5  # 3 bytes, and 10, 12 and 5 cached tokens
    assert in_ms == pytest.approx(
        {
            "floor": floor,
            "over_floor": 20 - floor,
            "decode": 20,
            "prefill": 16,
            "host": 6.5,
            "held_back": 10,
            "idle": 62,
        }
    )
    assert found.near_floor == pytest.approx(floor / 20)
    assert (found.decode_rows, found.decode_ms, found.bound) == (pytest.approx(5 / 3), 8, "memory")
    assert found.floor_ms == pytest.approx(4.0)


def test_a_request_that_ends_in_a_step_still_had_its_context_read_there() -> None:
    assert [(one.number, one.rows, one.context) for one in decode_steps(REQUESTS, STEPS)] == [
        (1, 2, 10),
        (2, 2, 12),
        (4, 1, 5),
    ]


def test_without_limits_the_decode_steps_are_one_part() -> None:
    for costs, limits in ((None, LIMITS), (COSTS, None), (COSTS, LIMITS.model_copy(update={"read_gb_s": 0.0}))):
        found = explain_cell(rows_of(REQUESTS, STEPS), costs, limits)
        assert (found.shares.floor, found.shares.over_floor, found.near_floor, found.bound) == (None, None, None, None)
        assert found.shares.decode == pytest.approx(20 / 114.5)


def test_without_a_kv_cache_there_is_no_floor_of_a_decode_step() -> None:
    uncached = [one.model_copy(update={"kv_tokens": 0}) for one in STEPS]
    assert explain_cell(rows_of(REQUESTS, uncached), COSTS, LIMITS).floor_ms is None


def test_steps_below_the_floor_say_that_the_limits_were_measured_in_a_worse_moment() -> None:
    slow = LIMITS.model_copy(update={"read_gb_s": 0.25e-6})
    found = explain_cell(rows_of(REQUESTS, STEPS), COSTS, slow)
    assert found.near_floor == pytest.approx(4 * 11.7 / 20)
    assert (found.shares.floor, found.shares.over_floor) == (found.shares.decode, 0.0)


def test_slots_are_empty_while_steps_run() -> None:
    # 10 + 10 + 5 ms with one of two slots, 18 ms with both
    assert explain_cell(rows_of(REQUESTS, STEPS), None, None).empty_slots == pytest.approx(1 - 61 / 86)


def test_prompts_in_the_same_step_delay_the_rows_that_decode() -> None:
    steps = [
        step(0.00, 5, rows=1),
        step(0.01, 6, rows=2),
        step(0.02, 9, rows=2, prefill=4),  # 3 ms more, for two rows
        step(0.03, 8, rows=4, prefill=4),  # 2 ms more than two rows, the nearest, for four
        step(0.04, 7, prefill=4),
    ]
    found = explain_cell(rows_of([request(0, [0.05])], steps), None, None)
    assert found.interference_ms == pytest.approx((2 * 3 + 4 * 2) / (1 + 2 + 2 + 4))


@pytest.mark.parametrize(
    ("steps", "interference"),
    [
        ([step(0, 5, prefill=4)], None),
        ([step(0, 5, rows=1, prefill=4)], None),  # nothing to compare with
        ([step(0, 5, rows=1)], 0.0),
    ],
)
def test_interference_is_known_only_beside_a_step_without_prompts(steps: list[StepRow], interference: float) -> None:
    assert explain_cell(rows_of([request(0, [0.05])], steps), None, None).interference_ms == interference


def test_a_cell_in_which_nothing_ran_was_idle() -> None:
    found = explain_cell(rows_of([request(0, [], start=None)], []), COSTS, LIMITS)
    assert found.shares.idle == 1
    assert (found.decode_ms, found.near_floor, found.empty_slots, found.interference_ms) == (None, None, 0, None)


@st.composite
def trials(draw: st.DrawFn) -> tuple[list[RequestRow], list[StepRow]]:
    """Requests and steps that need not fit each other, as in a run that was cut off or went wrong."""
    now, steps = 0.0, []
    for _ in range(draw(st.integers(0, 8))):
        now += draw(st.sampled_from([0.0, 1e-6, 0.01]))
        ms, share = draw(st.floats(0.01, 20)), draw(st.floats(-0.1, 1.1))
        prefill, rows, kv = (draw(st.integers(0, 3)) for _ in range(3))
        steps.append(step(now, ms, prefill=prefill, rows=rows, kv=kv, host=share * ms))
        now += ms / 1e3
    requests = []
    for number in range(draw(st.integers(1, 5))):
        due = draw(st.floats(0, 0.1))
        start = draw(st.none() | st.floats(due, due + 0.1))
        times = draw(st.lists(st.floats(due, due + 0.2), max_size=3).map(sorted))
        requests.append(request(number, times, due, start))
    return requests, steps


@given(trials(), st.sampled_from([None, LIMITS, LIMITS.model_copy(update={"read_gb_s": 1.0, "gflop_s": 1.0})]))
def test_shares_make_one_whatever_the_rows_say(
    trial: tuple[list[RequestRow], list[StepRow]], limits: Limits | None
) -> None:
    shares = explain_cell(rows_of(*trial), COSTS, limits).shares
    assert shares.decode + shares.prefill + shares.host + shares.held_back + shares.idle == pytest.approx(1)
    if shares.floor is not None and shares.over_floor is not None:
        assert shares.floor + shares.over_floor == pytest.approx(shares.decode)


# --- steps of all cells ------------------------------------------------------------------------------------------


def decoding(rows: int, times: Sequence[float], context: int) -> CellRows:
    """A trial of decode steps, and two before them that do not count."""
    all_times = [100.0, 100.0, *times]
    steps = [step(number, ms, rows=rows, kv=rows * context) for number, ms in enumerate(all_times)]
    return rows_of([request(0, [99.0])], steps)


def test_step_times_are_medians_by_the_number_of_rows() -> None:
    cells = [
        decoding(4, [6, 7, 8, 9, 10], 20),
        decoding(1, [4, 5, 6], 10),
        decoding(1, [5, 6], 20),
        decoding(2, [5], 9),
    ]
    one, four = step_times(cells, COSTS, LIMITS)
    assert (one.decode_rows, one.steps, one.ms, one.quartiles) == (1, 5, 5, (5, 6))
    assert (one.context, one.floor_ms, one.bound) == (14, pytest.approx(4.4), "memory")
    assert (four.decode_rows, four.context, four.memory_ms, four.arithmetic_ms) == (4, 20, pytest.approx(11), 4)


def test_without_limits_step_times_have_no_floor() -> None:
    [only] = step_times([decoding(1, [4, 5, 6, 7, 8], 10)], None, None)
    assert (only.ms, only.floor_ms, only.bound) == (6, None, None)


# --- in words ----------------------------------------------------------------------------------------------------


def why(**values: Any) -> CellExplanation:
    shares = Shares(floor=0.5, over_floor=0.2, decode=0.7, prefill=0.2, host=0.04, held_back=0.05, idle=0.01)
    given = {"decode_rows": 1.0, "decode_ms": 5.0, "floor_ms": 3.0, "bound": "memory", "near_floor": 0.62}
    return CellExplanation(**{"shares": shares, "empty_slots": 0.0, "interference_ms": 0.0, **given, **values})


def cell(size: int, explained: CellExplanation | None = None, **values: Any) -> SweepCell:
    """Number and batch size are the same."""
    values = {"cell": size, "label": f"dynamic ({size} / 10 ms)", "explanation": explained or why(), **values}
    return sweep_cell(size).model_copy(update=values)


def time(rows: int, ms: float, floor: float | None, bound: str | None = "memory") -> StepTime:
    return StepTime.model_validate(
        {
            "decode_rows": rows,
            "steps": 100,
            "context": 30.0,
            "ms": ms,
            "quartiles": (ms * 0.97, ms * 1.03),
            "floor_ms": floor,
            "memory_ms": floor,
            "arithmetic_ms": floor,
            "bound": bound if floor else None,
        }
    )


def knee(cell: int, found: Sequence[int], roofline: float | None) -> Knee:
    power = Interval(value=5.0, low=4.9, high=5.1, n=5)
    return Knee(
        cell=cell, label="", tied=[], power=power, found_batches=list(found), roofline_batch=roofline, sentence=""
    )


def says(sentences: Sequence[str], beginning: str) -> list[str]:
    return [sentence for sentence in sentences if sentence.startswith(beginning)]


def test_a_sweep_is_explained_the_most_important_first() -> None:
    cells = [
        cell(1, window_idle=True),
        cell(4),
        cell(8, why(decode_rows=6.4, empty_slots=0.2, interference_ms=0.3, decode_ms=5.3, near_floor=0.58)),
        cell(16),
    ]
    times = [time(1, 4.8, 2.7), time(4, 5.0, 2.72), time(8, 5.3, 2.75), time(16, 8.1, 4.0, "arithmetic")]
    sentences = explanation(cells, times, COSTS, LIMITS, knee(8, [8], 11.0))
    assert sentences == [
        "From batch 1 to 4 a decode step went from 4.80 to 5.00 ms (+4 %; the roofline expects +1 %) for 4 times the "
        "tokens: both read the weights once.",
        "From batch 4 to 8 a decode step went from 5.00 to 5.30 ms (+6 %; the roofline expects +1 %) for 2 times the "
        "tokens: both read the weights once.",
        "From batch 8 to 16 a decode step went from 5.30 to 8.10 ms (+53 %; the roofline expects +45 %) for 2 times "
        "the tokens: by the roofline memory bounds the first and arithmetic the second.",
        "By the roofline, arithmetic overtakes the read of the weights only at batch 11.0; the knee "
        "was found at batch 8, "
        "and nothing larger was measured: a larger batch may still gain.",
        "A decode step of dynamic (8 / 10 ms) takes 5.30 ms; its floor, the read of weights and KV cache, is 3.00 ms: "
        "on the device it reaches 58 % of what the memory allows.",
        "A decode step of dynamic (1 / 10 ms) takes 5.00 ms; its floor, the read of weights and KV cache, is 3.00 ms: "
        "on the device it reaches 62 % of what the memory allows.",
        "Where the time of dynamic (8 / 10 ms) went: 50 % the floor of its decode steps, 20 % what these took beyond "
        "it, 20 % steps with a prefill, 4 % the engine's own work, 5 % held back while requests waited, 1 % idle.",
        "Where the time of dynamic (1 / 10 ms) went: 50 % the floor of its decode steps, 20 % what these took beyond "
        "it, 20 % steps with a prefill, 4 % the engine's own work, 5 % held back while requests waited, 1 % idle.",
        "The wait window could not matter at batch 1: every batch was full, or the last, when it started.",
        "While steps ran, 20 % of the slots of dynamic (8 / 10 ms) were empty: a decode step had 6.4 rows on average.",
    ]


def test_a_measurement_that_contradicts_the_roofline_is_named_with_both_numbers() -> None:
    times = [time(4, 5.0, 2.72), time(8, 6.1, 2.75)]
    sentences = explanation([cell(4), cell(8)], times, COSTS, LIMITS, None)
    assert sentences[0] == (
        "From batch 4 to 8 the roofline expects a decode step to change by +1 %, measured were +22 % (5.00 to 6.10 ms) "
        "for 2 times the tokens: what a step takes above its floor went from 2.28 to 3.35 ms."
    )


def test_without_limits_only_what_was_measured_is_said() -> None:
    times = [time(1, 4.8, None), time(2, 5.0, None), time(3, 5.2, None)]
    sentences = explanation([cell(1, why(shares=_no_floor(), near_floor=None))], times, None, None, None)
    assert sentences == [
        "From batch 1 to 2 a decode step went from 4.80 to 5.00 ms (+4 %) for 2 times the tokens.",
        "Where the time of dynamic (1 / 10 ms) went: 70 % decode steps, 20 % steps with a prefill, 4 % the engine's "
        "own work, 5 % held back while requests waited, 1 % idle.",
    ]


def _no_floor() -> Shares:
    return why().shares.model_copy(update={"floor": None, "over_floor": None})


@pytest.mark.parametrize(
    ("found", "roofline", "said"),
    [
        ([8], 11.0, "expect little beyond"),
        ([16], 40.0, "nothing larger was measured"),
        ([4], 40.0, "neither of the two roofs"),
        ([8, 16], 2.0, "not the shared read of the weights"),
    ],
)
def test_the_roofline_knee_is_held_against_the_found_one(found: list[int], roofline: float, said: str) -> None:
    cells = [cell(number, why(decode_rows=float(number))) for number in (4, 8, 16)]
    times = [time(4, 5.0, 2.7)]
    [sentence] = says(explanation(cells, times, COSTS, LIMITS, knee(found[0], found, roofline)), "By the roofline, ")
    assert said in sentence
    assert f"at batch {roofline:.1f}" in sentence


def test_where_no_knee_was_found_the_roofline_has_one() -> None:
    # 3 bytes a step; a row calculates for 1 ms and reads 3 of its own: arithmetic never catches up
    long, short = (
        explanation([], [time(1, 5.0, 3.0).model_copy(update={"context": c})], COSTS, LIMITS, None) for c in (30, 4)
    )
    assert "never overtakes the reads at 30 tokens" in long[0]
    assert says(short, "By the roofline, arithmetic overtakes the read of the weights at batch 5.0.")


@pytest.mark.parametrize(
    ("explained", "said"),
    [
        (why(bound="arithmetic"), "reaches 62 % of what the processor's arithmetic allows"),
        (why(near_floor=1.25), "it reaches 125 % of the limit: the limits were measured in a worse moment"),
        (why(interference_ms=0.4), "come 0.40 ms later on average; a decode step of its own takes 5.00 ms"),
    ],
)
def test_a_cell_is_described_by_its_own_numbers(explained: CellExplanation, said: str) -> None:
    assert any(said in sentence for sentence in explanation([cell(1, explained)], [], COSTS, LIMITS, None))


def test_the_knee_is_told_beside_batch_1_of_its_own_policy() -> None:
    cells = [cell(1, policy="static", label="static (1)"), cell(1, cell=0), cell(8)]
    told = says(explanation(cells, [], None, None, knee(8, [8], None)), "Where the time of ")
    assert [one.removeprefix("Where the time of ").split(" went")[0] for one in told] == [
        "dynamic (8 / 10 ms)",
        "dynamic (1 / 10 ms)",
    ]


def test_a_window_is_idle_only_if_it_was_so_in_every_cell_of_that_size() -> None:
    for other, named in ((True, ["4"]), (False, [])):
        cells = [cell(4, window_idle=True, max_wait_ms=0.0), cell(4, window_idle=other), cell(8)]
        found = says(explanation(cells, [], None, None, None), "The wait window")
        assert [one.split("batch ")[1].split(":")[0] for one in found] == named


def test_a_window_that_nobody_asked_for_is_not_talked_about() -> None:
    cells = [cell(4, window_idle=True, max_wait_ms=0.0)]
    assert not says(explanation(cells, [], None, None, None), "The wait window")


def test_of_many_sizes_those_around_the_knee_are_told() -> None:
    sizes = [1, 2, 4, 8, 16, 32, 64]
    times = [time(size, 5.0, 3.0) for size in sizes]
    sentences = explanation([cell(size) for size in sizes], times, COSTS, LIMITS, knee(16, [16], 16.0))
    assert [one.split(" a decode")[0] for one in says(sentences, "From batch")] == [
        "From batch 4 to 8",
        "From batch 8 to 16",
        "From batch 16 to 32",
    ]


def test_a_sweep_without_anything_has_nothing_to_explain() -> None:
    assert explanation([], [], None, None, None) == []


@pytest.mark.parametrize("key", words_explain.WORDS)
def test_every_sentence_is_found_again_in_chinese_with_its_numbers(key: str) -> None:
    values = {
        name: f"{number}.5"
        for number, name in enumerate(
            (
                "a",
                "b",
                "times",
                "before",
                "after",
                "change",
                "expected",
                "over_a",
                "over_b",
                "batch",
                "found",
                "context",
            )
        )
    }
    values |= {"cell": "dynamic (8 / 10 ms)", "ms": "5.00", "floor": "50 %", "near": "62 %", "over": "21 %"}
    values |= {"prefill": "22 %", "host": "4 %", "held_back": "5 %", "idle": "1 %", "decode": "70 %"}
    values |= {"sizes": "1, 4, 8", "empty": "12 %", "rows": "6.4", "added": "0.40"}
    english, chinese = (text(lang, key, **values) for lang in ("en", "zh"))
    assert translated("zh", english) == chinese != english
