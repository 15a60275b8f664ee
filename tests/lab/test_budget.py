"""A sweep within a time: what tells least is left out first, and it is said; no round begins that would not end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knee.errors import UserError
from knee.lab.arrivals import Arrival
from knee.lab.budget import Budget, Pace, estimate, parse_budget, plan_within
from knee.lab.messages import translated
from knee.lab.plan import CellSpec, SweepSpec, make_cells
from knee.lab.statistics import MIN_REPEATS
from knee.lab.workload import Prompt, Workload

PACE = Pace(start=0.5, prefill=0.001, decode=0.005)
CELLS = make_cells(["dynamic", "continuous"], [1, 4, 8, 16], [0.0, 5.0, 10.0])


def ask(arrival: str = "burst", requests: int = 16) -> Workload:
    return Workload((Prompt((1,) * 20),), requests, 32, Arrival.parse(arrival))


def spec(cells: tuple[CellSpec, ...] = CELLS, repeats: int = 5, workload: Workload | None = None) -> SweepSpec:
    return SweepSpec(workload or ask(), cells, repeats)


def needed(cells: tuple[CellSpec, ...], repeats: int) -> float:
    """Seconds of so many rounds."""
    return repeats * sum(estimate(cell, ask(), PACE) for cell in cells)


# --- the time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "seconds"), [("90s", 90.0), ("3m", 180.0), ("1.5h", 5400.0), ("45", 45.0), (" 2 m ", 120.0)]
)
def test_a_budget_is_a_number_and_a_unit(words: str, seconds: float):
    assert parse_budget(words) == seconds


@pytest.mark.parametrize("words", ["", "0", "0s", "-3m", "soon", "3 weeks", "1e3", "3m30s", "nan", "inf", "9" * 400])
def test_a_budget_that_is_no_time_is_refused(words: str):
    with pytest.raises(UserError, match="like 90s, 3m or 1\\.5h"):
        parse_budget(words)


# --- estimates ---------------------------------------------------------------------------------------------------


def test_a_trial_is_no_shorter_than_its_start_and_its_arrivals():
    spread = ask("rate:1", requests=60)
    for cell in CELLS:
        assert estimate(cell, spread, PACE) > PACE.start + 59
        assert PACE.start < estimate(cell, ask(), PACE) < 10


def test_a_rehearsal_takes_its_time_too():
    rehearsing = replace(PACE, rehearses=True)
    for cell in CELLS:
        short, rate = ask(requests=8), ask("rate:1", requests=60)
        added = estimate(cell, short, rehearsing) - estimate(cell, short, PACE)
        assert added == pytest.approx(estimate(cell, short, replace(PACE, start=0.0)), rel=0.5)
        assert 10 <= estimate(cell, rate, rehearsing) - estimate(cell, rate, PACE) < 12, "ten seconds of arrivals"


def test_larger_batches_are_thought_to_be_quicker_and_no_batch_quicker_than_its_riders():
    times = [estimate(CellSpec("static", size), ask(requests=64), PACE) for size in (1, 2, 4, 8)]
    assert times == sorted(times, reverse=True)


# --- what is planned ---------------------------------------------------------------------------------------------


def test_where_all_fits_nothing_is_left_out():
    planned, budget, said = plan_within(spec(), needed(CELLS, 5) + 10, PACE)
    assert planned == spec()
    assert said == []
    assert budget.estimates == {n: estimate(cell, ask(), PACE) for n, cell in enumerate(CELLS)}


def test_more_repeats_are_planned_only_where_they_fit():
    cells = CELLS[:2]
    planned, _, said = plan_within(spec(cells, repeats=20), needed(cells, 8) + 4.5, PACE)
    assert (planned.cells, planned.repeats) == (cells, 8)
    assert said == ["Planned 8 repeats of the 20 asked for: no room for more in a budget of 60 s."]


def test_windows_between_the_shortest_and_the_longest_go_first():
    planned, _, said = plan_within(spec(), needed(CELLS, 5) - 1, PACE)
    gone = [cell for cell in CELLS if cell not in planned.cells]
    assert gone
    assert {cell.max_wait_ms for cell in gone} == {5.0}
    names = ", ".join(map(str, gone))
    assert said == [f"No room in a budget of {(needed(CELLS, 5) - 1) / 60:.1f} min for {len(gone)} settings: {names}."]


def test_no_window_stays_without_the_shortest_of_its_size():
    for seconds in range(30, 170):
        cells = plan_within(spec(), seconds, PACE)[0].cells
        assert all(CellSpec("dynamic", cell.max_batch_size, 0.0) in cells for cell in cells if cell.max_wait_ms)


def test_then_go_sizes_between_others_and_the_extremes_of_a_policy_last():
    extremes = [str(cell) for cell in CELLS if cell.max_batch_size in (1, 16) and cell.max_wait_ms in (None, 0.0)]
    kept = [str(cell) for cell in plan_within(spec(), 58.0, PACE)[0].cells]
    assert kept == extremes == ["dynamic (1 / 0 ms)", "dynamic (16 / 0 ms)", "continuous (1)", "continuous (16)"]


def test_what_remains_last_are_the_two_extremes_of_one_policy():
    both = plan_within(spec(), 32.0, PACE)[0].cells
    assert len({cell.policy for cell in both}) == 1
    assert [cell.max_batch_size for cell in both] == [1, 16]


@settings(deadline=None, max_examples=60)
@given(seconds=st.floats(40.0, 400.0), repeats=st.integers(1, 12))
def test_a_plan_fits_keeps_the_order_and_says_what_is_missing(seconds: float, repeats: int):
    asked = spec(repeats=repeats)
    planned, budget, said = plan_within(asked, seconds, PACE)
    assert needed(planned.cells, planned.repeats) <= seconds
    assert list(planned.cells) == [cell for cell in CELLS if cell in planned.cells]
    assert min(repeats, MIN_REPEATS) <= planned.repeats <= repeats
    assert bool(set(CELLS) - set(planned.cells)) == any(sentence.startswith("No room") for sentence in said)
    assert (planned.repeats < repeats) == any(sentence.startswith("Planned") for sentence in said)
    assert all(translated("zh", sentence) != sentence for sentence in said)
    assert (planned.workload, planned.seed, planned.params) == (asked.workload, asked.seed, asked.params)
    assert set(budget.estimates) == set(range(len(planned.cells)))


def test_a_time_that_not_even_two_cells_fit_into_is_refused_with_what_they_need():
    with pytest.raises(
        UserError, match=r"a budget of 5 s is too short: even 2 of the 16 cells with 5 repeats take about \d+ s"
    ):
        plan_within(spec(), 5.0, PACE)
    with pytest.raises(UserError, match="1 cells with 5 repeats"):
        plan_within(spec(CELLS[:1]), 5.0, PACE)


def test_arrivals_that_take_longer_than_the_time_are_refused():
    with pytest.raises(UserError, match="too short"):
        plan_within(spec(workload=ask("rate:1", requests=60)), 120.0, PACE)


# --- when to stop ------------------------------------------------------------------------------------------------


def budget(seconds: float | None, estimates: dict[int, float], clock: list[float]) -> Budget:
    return Budget(seconds, estimates, lambda: clock[0])


def test_a_round_begins_only_if_it_ends_in_time():
    clock = [1000.0]
    given = budget(60.0, {0: 10.0, 1: 20.0}, clock)
    todo = [(0, 0), (1, 0)]
    assert given.allows(todo)
    clock[0] += 27.9
    assert given.allows(todo)
    clock[0] += 1.0
    assert not given.allows(todo)
    assert given.allows(todo[:1])


def test_what_trials_took_corrects_what_was_thought_of_those_that_did_not_run():
    clock = [0.0]
    given = budget(60.0, {0: 10.0, 1: 10.0}, clock)
    assert given.allows([(0, 0)] * 3)
    given.took(0, 30.0)
    assert not given.allows([(0, 1), (1, 1)])  # both three times as long
    given.took(1, 6.0)
    assert given.allows([(0, 1), (1, 1)])
    given.took(0, 10.0)
    assert given.seconds_left(0, 1) == pytest.approx(20.0)


def test_without_a_limit_everything_is_allowed_and_the_time_left_is_guessed():
    given = Budget.unlimited(spec())
    assert given.allows(spec().trials() * 1000)
    assert given.seconds_left(3, 10) is None
    given.took(0, 2.0)
    given.took(1, 4.0)
    assert given.seconds_left(0, 5) == pytest.approx(2.0 + 4 * 3.0)


def test_rounds_that_there_was_no_time_for_are_said():
    rounds = [[(0, repeat), (1, repeat)] for repeat in (3, 4)]
    [said] = budget(180.0, {}, [0.0]).left_out(rounds, spec(repeats=5))
    assert said == ("Ended after 3 of 5 repeats: another round would not have ended within the budget of 3.0 min.")
    assert translated("zh", said) != said
