"""A workload follows from its options and seed alone, and bad options are refused with a line that helps."""

from __future__ import annotations

import hashlib
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.errors import UserError
from knee.lab.workload import (
    BUILT_IN_PROMPTS,
    DEFAULT_PROMPT,
    Arrival,
    Prompt,
    Workload,
    encode_sources,
    gather_sources,
    read_prompts_file,
)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def of_lengths(*lengths: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(tuple(range(length))) for length in lengths)


# --- arrival -----------------------------------------------------------------------------------------------------


def test_a_burst_is_all_there_at_the_start():
    assert Arrival.parse("burst").times(3, seed=7) == (0.0, 0.0, 0.0)


def test_a_rate_has_constant_gaps():
    assert Arrival.parse("rate:4").times(4, seed=7) == (0.0, 0.25, 0.5, 0.75)


@given(seed=st.integers(0, 2**32), rate=st.floats(0.01, 1e4), n=st.integers(1, 50))
def test_poisson_times_start_at_zero_never_fall_and_repeat_with_the_seed(seed, rate, n):
    times = Arrival("poisson", rate).times(n, seed)
    assert len(times) == n
    assert times[0] == 0
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert times == Arrival("poisson", rate).times(n, seed)


def test_poisson_gaps_have_the_mean_of_the_rate():
    times = Arrival("poisson", 5.0).times(20_001, seed=1)
    assert times[-1] / 20_000 == pytest.approx(0.2, rel=0.03)


def test_another_seed_gives_other_times():
    assert Arrival("poisson", 5.0).times(3, 1) != Arrival("poisson", 5.0).times(3, 2)


@pytest.mark.parametrize("text", ["burst", "rate:2.5", "poisson:12"])
def test_an_arrival_is_written_as_it_is_read(text):
    assert str(Arrival.parse(text)) == text


@given(st.floats(min_value=1e-300, allow_infinity=False, allow_nan=False))
def test_no_digit_of_a_rate_is_lost_on_the_way(rate):
    assert Arrival.parse(str(Arrival("rate", rate))).rate == rate


@pytest.mark.parametrize("text", ["rate:0", "rate:-1", "poisson:nan", "poisson:inf", "rate:", "rate:fast"])
def test_a_bad_rate_is_refused(text):
    with pytest.raises(UserError, match="must be a number above 0"):
        Arrival.parse(text)


@pytest.mark.parametrize("text", ["uniform:3", "", "burst:2", "rate", "Burst"])
def test_an_unknown_arrival_lists_the_known(text):
    with pytest.raises(UserError, match="burst, rate:R or poisson:R"):
        Arrival.parse(text)


# --- prompts -----------------------------------------------------------------------------------------------------


def test_a_prompts_file_has_texts_or_ids_a_line(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    file.write_text('\ufeff{"prompt": "Zwölf \\u2028 Boxer"}\n\n{"prompt_ids": [1, 2]}', "utf-8")
    assert read_prompts_file(file) == ("Zwölf \u2028 Boxer", (1, 2))


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[1]",
        "3",
        "{}",
        '{"prompt": "a", "prompt_ids": [1]}',
        '{"prompt": 3}',
        '{"prompt_ids": "1,2"}',
        '{"prompt_ids": [1.5]}',
        '{"prompt_ids": [true]}',
        '{"prompt_ids": [1e400]}',
        "[" * 100_000,
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path: Path, line: str):
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "good"}\n' + line)
    with pytest.raises(UserError, match=r"prompts\.jsonl:2: "):
        read_prompts_file(file)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe{}"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes):
    file = tmp_path / "prompts.jsonl"
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"prompts\.jsonl"):
        read_prompts_file(file)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="No such file"):
        read_prompts_file(tmp_path / "nowhere.jsonl")


def test_prompts_come_from_one_place():
    with pytest.raises(UserError, match="--prompt and --prompt-ids are both given"):
        gather_sources(["a"], [(1,)], None)
    assert gather_sources(["a", "b"], [], None) == ("a", "b")
    assert gather_sources([], [(1, 2)], None) == ((1, 2),)
    assert gather_sources([], [], None) == ()


def test_an_empty_prompt_is_refused():
    with pytest.raises(UserError, match="prompt 2 is empty"):
        encode_sources(["a", ""], letters)
    with pytest.raises(UserError, match="the prompt is empty"):
        encode_sources([()], letters)


def test_the_built_in_prompts_are_sixteen_different_ones_of_different_lengths():
    assert len(set(BUILT_IN_PROMPTS)) == 16
    assert BUILT_IN_PROMPTS[0] == DEFAULT_PROMPT
    assert len({len(prompt) for prompt in BUILT_IN_PROMPTS}) == 16
    assert all(prompt.startswith("Q: ") or "A bus" in prompt for prompt in BUILT_IN_PROMPTS)
    assert all(prompt.endswith("\nA:") for prompt in BUILT_IN_PROMPTS)


# --- workloads ---------------------------------------------------------------------------------------------------


def test_fewer_prompts_than_requests_are_repeated_in_order():
    workload = Workload(of_lengths(2, 5), requests=5, max_new_tokens=3)
    assert workload.prompt_tokens == [2, 5, 2, 5, 2]
    assert workload.longest == 8


def test_the_hash_depends_on_the_work_and_on_nothing_else():
    base = Workload(of_lengths(2, 2), 4, 3)
    assert base.sha256 == Workload(of_lengths(2), 4, 3).sha256
    assert base.sha256 == Workload((Prompt((0, 1), "a text"),), 4, 3).sha256
    others = [
        Workload(of_lengths(2, 3), 4, 3),
        Workload(of_lengths(2), 5, 3),
        Workload(of_lengths(2), 4, 4),
        Workload(of_lengths(2), 4, 3, Arrival("rate", 1.0)),
        Workload(of_lengths(2), 4, 3, seed=1),
    ]
    assert len({other.sha256 for other in [base, *others]}) == 6


def test_the_hash_is_the_one_of_the_canonical_json():
    workload = Workload(of_lengths(2), 1, 3)
    content = '{"arrival":"burst","max_new_tokens":3,"prompt_ids":[[0,1]],"seed":0}'
    assert json.loads(content)["prompt_ids"] == [[0, 1]]
    assert workload.sha256 == hashlib.sha256(content.encode()).hexdigest()


def test_the_record_keeps_texts_where_all_are_texts_and_ids_otherwise():
    texts = encode_sources(["ab", "c"], letters)
    assert Workload(texts, 3, 1).as_record().prompts == ["ab", "c"]
    assert Workload(texts, 1, 1).as_record().prompts == ["ab"]
    assert Workload((*texts, Prompt((5,))), 3, 1).as_record().prompts == [[97, 98], [99], [5]]
    assert Workload(texts, 3, 1).as_record().prompt_tokens == [2, 1, 2]


def test_no_request_and_no_end_are_refused():
    with pytest.raises(UserError, match="at least 1"):
        Workload(of_lengths(2), 0, 1)
    for rate in (1e-4, 1e-300, math.ulp(0.0)):
        with pytest.raises(UserError, match="higher rate or fewer requests"):
            Workload(of_lengths(2), 20, 1, Arrival("rate", rate))
