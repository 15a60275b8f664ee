"""A workload follows from its options and seed alone, and bad options are refused with a line that helps."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from knee.errors import UserError
from knee.lab.arrivals import Arrival, TraceLine
from knee.lab.experiment import workload_record
from knee.lab.workload import (
    BUILT_IN_PROMPTS,
    DEFAULT_PROMPT,
    Prompt,
    Workload,
    encode_sources,
    gather_sources,
    read_prompts_file,
    replayed,
    trace_sources,
)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def of_lengths(*lengths: int) -> tuple[Prompt, ...]:
    return tuple(Prompt(tuple(range(length))) for length in lengths)


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
    assert workload_record(Workload(texts, 3, 1)).prompts == ["ab", "c"]
    assert workload_record(Workload(texts, 1, 1)).prompts == ["ab"]
    assert workload_record(Workload((*texts, Prompt((5,))), 3, 1)).prompts == [[97, 98], [99], [5]]
    assert workload_record(Workload(texts, 3, 1)).prompt_tokens == [2, 1, 2]


def test_the_record_says_when_each_request_is_due_where_that_is_known():
    prompts = of_lengths(2)
    assert workload_record(Workload(prompts, 3, 1, Arrival("rate", 2.0))).times == [0.0, 0.5, 1.0]
    assert workload_record(Workload(prompts, 3, 1)).times == [0.0] * 3
    assert workload_record(Workload(prompts, 3, 1, Arrival("closed", users=2))).times is None


def test_requests_may_differ_in_what_they_make():
    workload = Workload(of_lengths(2, 5), 3, 9, new_tokens=(1, 9, 4))
    assert [workload.tokens(request) for request in range(3)] == [1, 9, 4]
    assert workload.longest == 14
    assert workload_record(workload).new_tokens == [1, 9, 4]
    assert workload.sha256 != replace(workload, new_tokens=(1, 4, 9)).sha256
    assert [Workload(of_lengths(2), 2, 9).tokens(request) for request in range(2)] == [9, 9]


def test_the_typical_request_is_the_one_of_median_length():
    assert Workload(of_lengths(9, 2, 5), 3, 1).typical == 2
    assert Workload(of_lengths(2), 3, 9, new_tokens=(9, 1, 5)).typical == 2
    assert Workload(of_lengths(7), 1, 1).typical == 0


def test_a_workload_spans_its_arrivals_as_far_as_they_are_known():
    assert Workload(of_lengths(2), 5, 1, Arrival("rate", 2.0)).span == 2.0
    assert Workload(of_lengths(2), 5, 1).span == Workload(of_lengths(2), 5, 1, Arrival("closed", users=2)).span == 0.0


# --- traces ------------------------------------------------------------------------------------------------------

TRACE = (
    TraceLine(0.0, "ab", None, 4),
    TraceLine(1.5, None, 5, None),
    TraceLine(2.0, None, 5, 7),
    TraceLine(2.0, (8, 9), None, None),
)


def test_a_line_that_says_only_how_long_gets_a_prompt_of_that_length_like_no_other():
    sources = trace_sources(TRACE, filler=(1, 2, 3))
    assert sources == ("ab", (2, 3, 1, 2, 3), (3, 1, 2, 3, 1), (8, 9))


def test_a_trace_is_its_times_wherever_its_file_lies():
    here, there = (replayed(Arrival("trace", file=file), TRACE) for file in ("a.jsonl", "b/c.jsonl"))
    assert here.times(4, seed=3) == (0.0, 1.5, 2.0, 2.0)
    assert Workload(of_lengths(2), 4, 1, here).sha256 == Workload(of_lengths(2), 4, 1, there).sha256
    earlier = replayed(here, (*TRACE[:3], TraceLine(1.9, None, 2, None)))
    assert Workload(of_lengths(2), 4, 1, here).sha256 != Workload(of_lengths(2), 4, 1, earlier).sha256


def test_no_request_and_no_end_are_refused():
    with pytest.raises(UserError, match="at least 1"):
        Workload(of_lengths(2), 0, 1)
    for rate in (1e-4, 1e-300, math.ulp(0.0)):
        with pytest.raises(UserError, match="higher rate or fewer requests"):
            Workload(of_lengths(2), 20, 1, Arrival("rate", rate))
        with pytest.raises(UserError, match="higher rate or fewer requests"):
            Workload(of_lengths(2), 20, 1, Arrival("gamma", rate, 0.5))
