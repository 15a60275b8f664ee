"""Each warning is given where it should be and not where it should not, with advice for what was done already."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from knee.lab.judgement.judge import judge
from knee.lab.messages import translated
from knee.lab.records import RequestRow, StepRow, Warning_
from knee.lab.sweep_records import GpuUse
from tests.lab.judgement.sweeps import make, setting, steady, step_rows

TWO = [(setting(size=1), steady(0.2)), (setting(size=4), steady(0.1))]
QUIET = {"few_samples"}  # 40 requests are too few for p95, which is said of every sweep here


def warnings(*made: Any) -> dict[str, Warning_]:
    return {one.code: one for one in judge(*made).warnings}


def with_trials(change: Callable[[int, int], dict[str, Any]], **more: Any) -> dict[str, Warning_]:
    return warnings(*make(TWO, trial=change, **more))


def test_a_quiet_sweep_has_nothing_to_warn_of_but_percentiles():
    found = warnings(*make(TWO))
    assert set(found) == QUIET
    assert found["few_samples"].message.startswith("p95, p99 of the latencies are null: 40 requests")
    assert "--requests 60" in (found["few_samples"].advice or "")


def test_cells_with_other_tokens_are_a_defect():
    spec, requests, steps = make(TWO)
    changed = [
        row.model_copy(update={"token_ids_sha256": "f" * 64}) if row.cell and not row.request else row
        for row in requests
    ]
    found = warnings(spec, changed, steps)["tokens_differ"]
    assert "1 of 8 requests" in found.message
    assert "defect" in (found.advice or "")


def test_failed_requests_are_counted_with_the_first_error():
    spec, requests, steps = make(TWO, trial=lambda cell, _: {"errors": ["a logit is NaN"]} if cell else {})
    failed = [
        row.model_copy(update={"finish_reason": "error"}) if row.cell and not row.request else row for row in requests
    ]
    found = warnings(spec, failed, steps)["requests_failed"]
    assert found.message == "5 requests failed; the first error: a logit is NaN"
    assert found.cells == [1]


def late(again: bool) -> dict[str, Warning_]:
    spec, requests, steps = make(TWO)
    void = spec.trials[0].model_copy(update={"void": True, "client_delay_ms": 3.2})
    trials = [void, *spec.trials] if again else [void, *spec.trials[1:]]
    return warnings(spec.model_copy(update={"trials": trials}), requests, steps)


def test_a_late_client_is_told_of_and_whether_the_trial_was_made_up_for():
    repeated, missing = late(again=True), late(again=False)
    assert "in 1 of 11 trials, by up to 3.20 ms" in repeated["late_client"].message
    assert "nothing needs to be done" in (repeated["late_client"].advice or "")
    assert missing["late_client"].cells == [0]
    assert "--resume" in (missing["late_client"].advice or "")


@pytest.mark.parametrize(
    ("more", "advice"),
    [
        ({}, "--repeats 5"),
        ({"status": "interrupted"}, "--resume"),
        ({"options": {"budget": "2m"}}, "--budget"),
        ({"status": "failed", "asked": 5}, "--resume"),
    ],
)
def test_few_repeats_are_warned_of_with_advice_that_fits(more: dict[str, Any], advice: str):
    asked = more.pop("asked", 3)
    spec, requests, steps = make(TWO, repeats=3, **more)
    spec = spec.model_copy(update={"repeats": asked})
    found = [one for one in judge(spec, requests, steps).warnings if "there are no intervals" in one.message]
    assert len(found) == 1
    assert advice in (found[0].advice or "")


def noisy(repeats: int = 5, **trial: Any) -> dict[str, Warning_]:
    cells = [(setting(size=1), steady(0.2, 0.6)), (setting(size=4), steady(0.1))]
    return with_noise(cells, repeats, trial)


def with_noise(cells: Any, repeats: int, trial: dict[str, Any]) -> dict[str, Warning_]:
    return warnings(*make(cells, repeats=repeats, trial=lambda _cell, _repeat: trial))


def test_a_noisy_cell_is_named_and_the_advice_knows_what_was_tried():
    assert noisy()["noisy"].cells == [0]
    assert "--repeats 10" in (noisy()["noisy"].advice or "")
    assert "--requests" in (noisy(repeats=12)["noisy"].advice or "")
    assert "First see to the machine" in (noisy(other_load=0.8)["noisy"].advice or "")


def test_a_drift_over_the_run_is_told_with_its_direction():
    cells = [(one, lambda repeat, _request: 0.1 * (1 + 0.05 * repeat)) for one, _ in TWO]
    found = warnings(*make(cells))
    assert "got slower" in found["drifting"].message
    assert "drifting" not in warnings(*make(TWO))


def test_times_that_fell_to_a_quarter_fell_by_three_quarters():
    """About: trials come in pairs. The line goes through logarithms, whose difference is no percentage (151)."""
    cells = [(one, lambda repeat, _request: 0.4 * 4 ** (-repeat / 4)) for one, _ in TWO]
    message = warnings(*make(cells))["drifting"].message
    assert any(f"fell by {percent} %" in message for percent in range(72, 80)), message


def test_a_slow_pulse_a_hot_processor_and_a_low_clock_are_throttling():
    slow = with_trials(lambda _cell, repeat: {"pulse_ms": (10.0, 10.0 if repeat < 2 else 13.0)})
    assert "around 6 of 10 trials, up to 30 % longer" in slow["throttled"].message
    assert "93 degrees" in with_trials(lambda *_: {"temperature_c": 93.0})["throttled"].message
    clocks = {"pulse_ms": (10.0, 13.0), "frequency_mhz": 3000.0}
    clock = with_trials(lambda _cell, repeat: clocks if repeat else {"frequency_mhz": 4000.0})
    assert "25 % below" in clock["throttled"].message
    resting = with_trials(lambda _cell, repeat: {"frequency_mhz": 3000.0 if repeat else 4000.0})
    assert "throttled" not in resting  # a clock alone, read on cores at rest
    assert "throttled" not in with_trials(lambda *_: {"pulse_ms": (10.0, 10.5), "temperature_c": 60.0})


def test_other_work_and_swap_are_told_of_above_a_threshold():
    assert "0.40 cores" in with_trials(lambda *_: {"other_load": 0.4})["other_load"].message
    assert "other_load" not in with_trials(lambda *_: {"other_load": 0.05})
    assert "1.5 GiB" in with_trials(lambda *_: {"swap_gib": 1.5})["swap"].message
    assert "swap" not in with_trials(lambda *_: {"swap_gib": 0.001})


def test_a_gap_between_the_clocks_in_any_trial_is_told_of():
    assert (
        "3.0 s"
        in with_trials(lambda cell, repeat: {"clock_gap_s": 3.0 if (cell, repeat) == (1, 2) else 0.0})[
            "clock_gap"
        ].message
    )


def test_trials_that_failed_are_told_of_with_their_error():
    spec, requests, steps = make(TWO)
    lost = spec.trials[0].model_copy(update={"void": True, "errors": ["out of memory"]})
    found = warnings(spec.model_copy(update={"trials": [lost, *spec.trials[1:]]}), requests, steps)
    assert found["requests_failed"].message == "1 trials failed and count nowhere; the first error: out of memory"
    assert "late_client" not in found


def cold_steps(cell: int, repeat: int) -> list[StepRow]:
    rows = step_rows(cell, repeat, count=14)
    return [row.model_copy(update={"ms": 25.0}) if 0 < row.step < 4 else row for row in rows]


def test_first_steps_that_take_much_longer_are_cold():
    assert "10 of 10 trials took 2.5 times" in warnings(*make(TWO, steps=cold_steps))["cold"].message
    assert "cold" not in warnings(*make(TWO))


def queued(row: RequestRow) -> RequestRow:
    """In cell 0 most requests are still waiting when the last one comes."""
    due = row.request * 0.1
    start = 0.85 if row.cell == 0 else due + 0.01
    times = [0.86, 0.87, 0.88, 0.89]
    return row.model_copy(update={"scheduled_at": due, "prefill_start": start, "token_times": times})


def test_a_queue_that_grows_is_saturation_where_requests_come_by_a_clock():
    times = [n * 0.1 for n in range(8)]
    busy = {"steps": lambda cell, repeat: step_rows(cell, repeat, count=90)}  # all the time, to the last token
    spec, requests, steps = make(TWO, workload={"arrival": "rate:10", "times": times}, **busy)
    found = warnings(spec, [queued(row) for row in requests], steps)["saturated"]
    assert found.cells == [0]
    assert "rate:10" in found.message
    spec, requests, steps = make(TWO, workload={"arrival": "burst", "times": [0.0] * 8})
    assert "saturated" not in warnings(spec, [queued(row) for row in requests], steps)


def test_who_waits_for_company_is_not_overrun():
    times = [n * 0.1 for n in range(8)]
    spec, requests, steps = make(
        TWO,
        workload={"arrival": "rate:10", "times": times},
        steps=lambda cell, repeat: step_rows(cell, repeat, count=3),
    )
    assert "saturated" not in warnings(spec, [queued(row) for row in requests], steps)


GRAPH = "the step of 16 rows could not be captured as a CUDA graph (out of memory): it runs launch by launch, slower"


def test_what_a_device_could_not_do_is_told_once_in_its_own_words_with_its_cells():
    found = with_trials(lambda cell, _: {"device_warnings": [f"{GRAPH}."]} if cell else {})["device_fallback"]
    assert found.message == f"The device did not run as intended: {GRAPH}."
    assert found.cells == [1]
    many = with_trials(lambda *_: {"device_warnings": [f"no graph for {n} rows" for n in range(10)]})["device_fallback"]
    assert "no graph for 3 rows; and 6 more." in many.message
    assert many.cells == [0, 1]


@pytest.mark.parametrize(("share", "trials", "told"), [(0.9, 5, True), (0.1, 5, False), (0.9, 1, False)])
def test_a_gpu_that_held_its_clock_down_for_long_in_many_trials_is_told_of(share: float, trials: int, told: bool):
    def trial(_cell: int, repeat: int) -> dict[str, Any]:
        throttled = {"hardware_thermal": share} if repeat < trials else {}
        return {"gpu": GpuUse(seconds=2.0, throttled=throttled)}

    found = with_trials(trial, repeats=6)
    assert ("throttled" in found) is told
    if told:
        assert "10 of 12 trials (hardware thermal)" in found["throttled"].message


def test_every_warning_and_advice_is_there_in_chinese():
    everything = make(
        [(one, lambda repeat, _request: 0.1 * (1 + 0.3 * repeat)) for one, _ in TWO],
        repeats=6,
        trial=lambda *_: {
            "other_load": 0.5,
            "swap_gib": 2.0,
            "pulse_ms": (10.0, 20.0),
            "device_warnings": [GRAPH],
        },
        steps=cold_steps,
    )
    found = warnings(*everything)
    assert {"noisy", "drifting", "throttled", "other_load", "swap", "cold", "few_samples", "device_fallback"} <= set(
        found
    )
    for one in found.values():
        assert translated("zh", one.message) != one.message
        assert one.advice is not None
        assert translated("zh", one.advice) != one.advice


def test_a_warning_of_the_look_around_at_the_start_gives_way_to_what_the_trials_saw():
    spec, requests, steps = make(TWO, trial=lambda *_: {"other_load": 0.5})
    early = Warning_(code="other_load", message="Other programs keep 1.0 cores busy.")
    draft = spec.draft.model_copy(update={"warnings": [early]})
    found = judge(spec.model_copy(update={"draft": draft}), requests, steps).warnings
    assert [one.message for one in found if one.code == "other_load"] != [early.message]
