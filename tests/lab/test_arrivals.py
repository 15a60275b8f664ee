"""Arrivals follow from their options and the seed alone, and what cannot be read is refused with a line that helps."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.errors import UserError
from knee.lab.arrivals import Arrival, TraceLine, read_trace

MANY = 20_001


def gaps(arrival: str, seed: int = 1) -> list[float]:
    times = Arrival.parse(arrival).times(MANY, seed)
    assert times is not None
    return [later - earlier for earlier, later in pairwise(times)]


# --- times -------------------------------------------------------------------------------------------------------


def test_a_burst_is_all_there_at_the_start():
    assert Arrival.parse("burst").times(3, seed=7) == (0.0, 0.0, 0.0)


def test_a_rate_has_constant_gaps():
    assert Arrival.parse("rate:4").times(4, seed=7) == (0.0, 0.25, 0.5, 0.75)


random_arrivals = st.builds(Arrival, st.just("poisson"), st.floats(0.01, 1e4)) | st.builds(
    Arrival, st.just("gamma"), st.floats(0.01, 1e4), st.floats(0.1, 5.0)
)


@given(arrival=random_arrivals, seed=st.integers(0, 2**32), n=st.integers(1, 50))
def test_random_times_start_at_zero_never_fall_and_repeat_with_the_seed(arrival, seed, n):
    times = arrival.times(n, seed)
    assert len(times) == n
    assert times[0] == 0
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert times == arrival.times(n, seed)


@pytest.mark.parametrize("arrival", ["poisson:5", "gamma:5:0.5", "gamma:5:1", "gamma:5:2"])
def test_random_gaps_have_the_mean_of_the_rate(arrival: str):
    assert fmean(gaps(arrival)) == pytest.approx(0.2, rel=0.05)


@pytest.mark.parametrize(
    ("arrival", "variation"), [("poisson:5", 1.0), ("gamma:5:0.5", 0.5), ("gamma:5:1", 1.0), ("gamma:5:2", 2.0)]
)
def test_random_gaps_vary_as_much_as_asked_for(arrival: str, variation: float):
    found = gaps(arrival)
    assert pstdev(found) / fmean(found) == pytest.approx(variation, rel=0.05)


@pytest.mark.parametrize("arrival", ["poisson:5", "gamma:5:2"])
def test_another_seed_gives_other_times(arrival: str):
    assert Arrival.parse(arrival).times(3, 1) != Arrival.parse(arrival).times(3, 2)


def test_the_times_of_a_closed_loop_are_not_known():
    assert Arrival.parse("closed:4").times(10, seed=0) is None
    assert not Arrival.parse("closed:4").open_loop
    assert Arrival.parse("poisson:4").open_loop


def test_a_trace_is_replayed_as_far_as_asked():
    assert Arrival("trace", file="a", replayed=(0.0, 0.5, 2.0)).times(2, seed=0) == (0.0, 0.5)


# --- words -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["burst", "rate:2.5", "poisson:12", "gamma:3:2.5", "closed:8", "trace:some/file.jsonl", "trace:c:/a:b"]
)
def test_an_arrival_is_written_as_it_is_read(text: str):
    assert str(Arrival.parse(text)) == text
    assert str(Arrival.parse(f" {text}\n")) == text


@given(st.floats(min_value=1e-300, allow_infinity=False, allow_nan=False))
def test_no_digit_of_a_rate_is_lost_on_the_way(rate):
    assert Arrival.parse(str(Arrival("rate", rate))).rate == rate


@pytest.mark.parametrize(
    "text",
    ["rate:0", "rate:-1", "poisson:nan", "poisson:inf", "rate:", "rate:fast", "gamma:0:1", "gamma:1:0", "gamma:1:x"],
)
def test_a_bad_rate_or_variation_is_refused(text: str):
    with pytest.raises(UserError, match="must be a number above 0"):
        Arrival.parse(text)


@pytest.mark.parametrize("variation", ["0.001", "1e-200", "101", "1e200"])
def test_a_variation_that_no_machine_can_draw_is_refused(variation: str):
    with pytest.raises(UserError, match=r"from 0\.01"):
        Arrival.parse(f"gamma:1:{variation}")


@pytest.mark.parametrize("text", ["closed:0", "closed:-1", "closed:2.5", "closed:", "closed:many", "closed:²"])
def test_users_are_whole_and_at_least_one(text: str):
    with pytest.raises(UserError, match="whole number of at least 1"):
        Arrival.parse(text)


@pytest.mark.parametrize("text", ["uniform:3", "", "burst:2", "rate", "Burst", "gamma:2", "closed", "trace", "trace:"])
def test_an_unknown_arrival_lists_the_known(text: str):
    with pytest.raises(UserError, match=r"burst, rate:R, poisson:R, gamma:R:CV .* closed:N .* or trace:FILE"):
        Arrival.parse(text)


# --- traces ------------------------------------------------------------------------------------------------------


def test_a_trace_is_sorted_and_moved_to_zero(tmp_path: Path):
    file = tmp_path / "trace.jsonl"
    file.write_text(
        '\ufeff{"arrival": 7.5, "prompt": "Zwölf \\u2028", "output_length": 3}\n\n'
        '{"arrival": 5, "prompt_ids": [1, 2], "seed": 4}\n{"arrival": 6.0, "prompt_length": 9, "output_length": null}',
        "utf-8",
    )
    assert read_trace(file) == (
        TraceLine(0.0, (1, 2), None, None),
        TraceLine(1.0, None, 9, None),
        TraceLine(2.5, "Zwölf \u2028", None, 3),
    )


def test_requests_of_one_moment_keep_their_order(tmp_path: Path):
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(f'{{"arrival": 2, "prompt_length": {n}}}\n' for n in (3, 1, 2)))
    assert [line.prompt_length for line in read_trace(file)] == [3, 1, 2]


GOOD = {"arrival": 0.5, "prompt_length": 4}


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "3",
        "[" * 100_000,
        *(
            json.dumps(line)
            for line in (
                {},
                {"arrival": 0.5},
                {"prompt_length": 4},
                {**GOOD, "prompt": "a"},
                {**GOOD, "prompt_ids": [1]},
                {**GOOD, "arrival": -0.1},
                {**GOOD, "arrival": "0"},
                {**GOOD, "arrival": True},
                {**GOOD, "arrival": None},
                {**GOOD, "arrival": float("nan")},
                {**GOOD, "arrival": float("inf")},
                {**GOOD, "arrival": 10**400},
                {**GOOD, "prompt_length": 0},
                {**GOOD, "prompt_length": 1.5},
                {**GOOD, "prompt_length": True},
                {**GOOD, "prompt_length": None},
                {**GOOD, "output_length": 0},
                {**GOOD, "output_length": "9"},
                {**GOOD, "output_length": False},
                {"arrival": 0, "prompt": 3},
                {"arrival": 0, "prompt": None},
                {"arrival": 0, "prompt_ids": "1,2"},
                {"arrival": 0, "prompt_ids": [1.5]},
                {"arrival": 0, "prompt_ids": [True]},
            )
        ),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str):
    file = tmp_path / "trace.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{line}\n")
    with pytest.raises(UserError, match=r"trace\.jsonl:3: .*write \{") as refused:
        read_trace(file)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe{}"])
def test_a_file_without_requests_is_refused(tmp_path: Path, content: bytes):
    file = tmp_path / "trace.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"trace\.jsonl"):
        read_trace(file)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"cannot read the trace .*No such file"):
        read_trace(tmp_path / "nowhere.jsonl")
