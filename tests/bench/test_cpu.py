"""Only steady steps are timed, shares of the limit follow from the program's costs, and results keep their samples."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks import cpu
from benchmarks.cpu import Row, Sample, Subject

from knee.engine.types import StepStats
from knee.lab.speed import Floor, Rate, Speed
from knee.llm import LLM
from knee.program import StepShape
from tests.lab.fake_llm import make_llm

TINY = cpu.DISTILGPT2 | {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 61, "n_positions": 640}
RATE = Rate(best=10.0, median=9.0, runs=5, how="a kernel")
SPEED = Speed(RATE, RATE, replace(RATE, best=100.0), RATE)


def stats(duration: float, device: float, prefill: int = 0) -> StepStats:
    return StepStats(0.0, duration, device, prefill, 1, 1, 0, 1, 0)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder: Path = tmp_path_factory.mktemp("tiny")
    cpu.write_random(TINY, folder)
    return Subject("tiny", "float32", LLM.load(str(folder), "reference", "float32"), list(range(61)) * 20)


def test_only_steps_after_the_last_prefill_are_steady() -> None:
    steps = [(9.0, stats(9.0, 8.0, prefill=16)), (1.0, stats(1.0, 0.9)), (9.0, stats(9.0, 8.0, prefill=16))]
    last = [(0.002, stats(0.002, 0.001)), (0.004, stats(0.004, 0.003))]
    assert cpu.steady(steps + last) == last


def test_a_sample_is_the_mean_step_and_the_hosts_share_of_it() -> None:
    got = cpu.sample([(0.002, stats(0.002, 0.001)), (0.004, stats(0.004, 0.003))])
    assert (got.ms, got.host) == pytest.approx((3.0, 1 / 3))


def test_a_static_batch_decodes_all_its_rows_in_every_steady_step() -> None:
    steps = cpu.steady(cpu.run_steps(make_llm(), [[1] * 16, [2] * 16, [3] * 16], 8))
    assert [step.decode_rows for _, step in steps] == [3] * 7


def test_prompts_differ_and_have_the_length() -> None:
    prompts = Subject("m", "float32", make_llm(), list(range(100))).prompts(4, 16)
    assert [len(prompt) for prompt in prompts] == [16] * 4
    assert len({tuple(prompt) for prompt in prompts}) == 4


def test_the_floor_is_the_programs_cost_against_the_machine(subject: Subject) -> None:
    widths = subject.widths()
    assert (widths.weight, widths.kv) == (4.0, 4.0)
    case = cpu.decode_case(subject, 2, 8)
    cost = subject.llm.program.cost(StepShape.decode(2, cpu.DECODE_PROMPT + 4))
    assert case.floor(SPEED).memory_s == pytest.approx(cost.bytes / 10e9)
    assert case.floor(SPEED).arithmetic_s == pytest.approx(cost.flops / 100e9)


def test_a_round_takes_a_sample_of_every_case(subject: Subject) -> None:
    cases = [cpu.decode_case(subject, 2, 4), cpu.prefill_case(subject)]
    cpu.measure(cases, rounds=2)
    rows = [cpu.make_row(case, SPEED) for case in cases]
    assert [(row.work, row.rows, len(row.samples)) for row in rows] == [("decode", 2, 2), ("prefill", 512, 2)]
    assert all(0 < row.of_limit < 1 for row in rows)
    assert len(list(cpu.describe(SPEED, [subject]))) == 2


def row(work: str, batch: int, rows: int, times: Sequence[float]) -> Row:
    samples = tuple(Sample(ms, 0.1) for ms in times)
    return Row("m", "float32", work, batch, rows, samples, Floor(memory_s=0.004, arithmetic_s=0.001))


def test_a_row_is_the_median_of_its_rounds() -> None:
    got = row("decode", 4, 4, [10.0, 8.0, 9.0, 8.0, 6.0])
    assert got.ms == 8.0
    assert (got.tokens_per_s, got.spread, got.of_limit, got.host) == pytest.approx((500.0, 0.5, 0.5, 0.1))
    document = json.loads(json.dumps(got.to_json()))
    assert [one["ms"] for one in document["samples"]] == [10.0, 8.0, 9.0, 8.0, 6.0]
    assert (document["of_limit"], document["floor_ms"], document["bound"]) == (0.5, 4.0, "memory")


def test_a_table_names_each_kind_of_work_once() -> None:
    table = cpu.make_table(
        "m", [row("decode", 4, 4, [8.0]), row("decode", 4, 4, [9.0]), row("prefill", 1, 512, [16.0])]
    )
    cells = [list(column.cells) for column in table.columns]
    assert cells[0] == ["decode 4", "", "prefill 512"]
    assert cells[2] == ["500.0", "444.4", "32,000.0"]
    assert cells[7] == ["50%", "44%", "25%"]


def test_of_two_measurements_of_a_machine_the_best_counts() -> None:
    worse = replace(SPEED, read_gb_s=replace(RATE, best=1.0), int8_gflop_s=RATE)
    better = replace(SPEED, float32_gflop_s=replace(RATE, best=1.0), int8_gflop_s=replace(RATE, best=20.0))
    got = cpu.fastest([worse, better])
    assert (got.read_gb_s.best, got.float32_gflop_s.best, got.gflop_s("int8").best) == (10.0, 100.0, 20.0)
    assert got.int4_gflop_s is None


def test_weight_types_take_turns(subject: Subject) -> None:
    two = [replace(subject, model=cpu.RANDOM), replace(subject, model=cpu.RANDOM, dtype="int8")]
    options = argparse.Namespace(model="other", batch_sizes="1,4", random_batch_sizes="2", new_tokens=4)
    cases = cpu.make_cases(two, options)
    order = [(case.work, case.batch, case.subject.dtype) for case in cases]
    assert order == [(*work, dtype) for work in (("decode", 2), ("prefill", 1)) for dtype in ("float32", "int8")]
