"""The benchmark of the GPU: that all of it runs, on the processor and with tiny models, and what its figures mean."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from benchmarks import cuda
from benchmarks.cuda import Cell, Row, Sample, Switch, Variant
from benchmarks.cuda_profile import Kernel, Profile, kernels_of, profile_table
from benchmarks.random_models import DISTILGPT2, LLAMA_3_2_1B, SMOLLM2_135M, tiny, write_random

from knee.engine.types import StepStats
from knee.lab.speed import Floor
from knee.lab.sweep_records import Limits
from knee.llm import LLM
from knee.models import build_program
from knee.program import StepShape
from tests.lab.fake_llm import make_llm


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file: Path = tmp_path_factory.mktemp("cuda") / "result.json"
    # The reference device is the GPU here: it gets everything, and the cpu device stands beside it in the sweep.
    assert cuda.main(["--device", "reference", "--dtypes", "float32", "--tiny", "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found


def test_every_section_runs(document: dict[str, Any]) -> None:
    assert document["failed"] == []
    assert set(document["seconds"]) == set(cuda.SECTIONS)
    assert {"date", "hardware", "software", "versions", "options", "vllm", "limits"} <= document.keys()


def test_the_table_has_every_model_and_batch_size(document: dict[str, Any]) -> None:
    rows = document["table"]
    assert [(row["model"], row["batch"]) for row in rows] == [(model, size) for model in cuda.MODELS for size in (1, 4)]
    assert all(len(row["samples"]) == 2 and row["tokens_per_s"] > 0 and row["limit_ms"] > 0 for row in rows)
    assert all(row["vllm"] is None for row in rows)  # another model, another device


def test_the_sweep_runs_on_the_device_and_on_the_processor(document: dict[str, Any]) -> None:
    cells = [(cell["device"], cell["batch"], cell["wait_ms"]) for cell in document["sweep"]["cells"]]
    expected = [("reference", size, wait) for wait in (0.0, 10.0) for size in (1, 4, 8)]
    assert cells == expected + [("cpu", size, wait) for wait in (0.0, 10.0) for size in (1, 4)]
    assert set(document["sweep"]["gain"]) == {"reference", "cpu"}


def test_a_start_is_measured_cold_and_warm(document: dict[str, Any]) -> None:
    start = document["start"]
    assert [len(start[kind]) for kind in ("cold", "warm")] == [1, 1]
    assert all(run["seconds"] > run["load_s"] > 0 for runs in start.values() for run in runs)


def test_a_part_that_fails_does_not_take_the_others_along(capsys: pytest.CaptureFixture[str]) -> None:
    to = cuda.Report(cuda.parse(["--tiny"]))
    with to.part("mixed"):
        raise ValueError("out of luck")
    assert to.failed == ["mixed"]
    shown = capsys.readouterr()
    assert "out of luck" in shown.err
    assert "[mixed: 0 s, FAILED]" in shown.out


def test_options_of_tiny_give_way_to_those_that_are_given() -> None:
    options = cuda.parse(["--tiny", "--batch-sizes", "2"])
    assert (options.batch_sizes, options.new_tokens, options.repeats) == ([2], 6, 2)
    assert cuda.parse(["--profile"]).only == ["profile"]
    with pytest.raises(SystemExit):
        cuda.parse(["--only", "tables"])


# --- models ------------------------------------------------------------------------------------------------------


def test_shapes_are_those_of_the_models() -> None:
    sizes = [build_program(config).parameters / 1e6 for config in (SMOLLM2_135M, DISTILGPT2, LLAMA_3_2_1B)]
    assert sizes == pytest.approx([134.5, 81.9, 1235.8], abs=0.1)


@pytest.mark.parametrize("config", [SMOLLM2_135M, DISTILGPT2], ids=["llama", "gpt2"])
def test_a_random_model_is_the_same_in_both_types_but_for_rounding(config: dict[str, Any], tmp_path: Path) -> None:
    for storage in ("F32", "BF16"):
        write_random(tiny(config), tmp_path / storage, storage)  # type: ignore[arg-type]
    wide, narrow = (LLM.load(str(tmp_path / storage), "reference") for storage in ("F32", "BF16"))
    assert wide.checkpoint.tensors.keys() == narrow.checkpoint.tensors.keys()
    for name, tensor in wide.checkpoint.tensors.items():
        assert narrow.checkpoint.tensors[name].read() == pytest.approx(tensor.read(), rel=2**-7)


def test_no_two_rows_of_a_random_matrix_are_the_same(tmp_path: Path) -> None:
    write_random(tiny(SMOLLM2_135M), tmp_path)
    matrix = LLM.load(str(tmp_path), "reference").checkpoint.tensors["model.embed_tokens.weight"].read()
    assert len({row.tobytes() for row in matrix}) == len(matrix)


# --- figures -----------------------------------------------------------------------------------------------------


def stats(duration: float, device: float, prefill: int = 0) -> StepStats:
    return StepStats(0.0, duration, device, prefill, 1, 1, 0, 1, 0)


def test_step_times_are_medians_of_pure_decode_steps() -> None:
    steps = [(9.0, stats(9.0, 8.0, prefill=16)), (0.003, stats(0.002, 0.001)), (0.005, stats(0.004, 0.003))]
    assert cuda.step_times(steps) == pytest.approx((3.0, 2.0, 4.0))


def test_a_run_makes_all_tokens_and_its_steps_are_of_the_whole_batch() -> None:
    llm = make_llm()
    engine = cuda.make_engine(llm, 4, cuda.PROMPT + 8, 64)
    found = cuda.run_work(engine, cuda.burst(4, 8, 50), 4, 64)
    assert found.tokens_per_s * found.seconds == pytest.approx(4 * 8)
    assert llm.device.steps == 8  # type: ignore[attr-defined]


def test_mixed_work_is_seeded_and_within_its_range() -> None:
    work = cuda.mixed_work(200, (3, 12), 50)
    assert {len(prompt) for prompt in work.prompts} == set(work.new_tokens) == set(range(3, 13))
    assert work == cuda.mixed_work(200, (3, 12), 50)
    assert work.longest <= 24


def test_the_floor_is_the_programs_cost_against_the_limits(tmp_path: Path) -> None:
    write_random(tiny(SMOLLM2_135M), tmp_path)
    llm, shape = LLM.load(str(tmp_path), "reference", "float32"), StepShape.decode(4, 20)
    cost = llm.program.cost(shape)
    least = cuda.floor(llm, shape, Limits(read_gb_s=10.0, gflop_s=100.0, dtype="float32", how="a kernel"))
    assert (least.memory_s, least.arithmetic_s) == pytest.approx((cost.bytes / 10e9, cost.flops / 100e9))


def test_a_row_stands_beside_its_limit_and_vllm() -> None:
    samples = [Sample(1.0, rate, ms, ms / 2, ms) for rate, ms in ((400.0, 3.0), (500.0, 2.0), (600.0, 1.0))]
    row = Row("m", "bfloat16", 16, Floor(memory_s=0.001, arithmetic_s=0.0001), vllm=250.0, samples=samples)
    found = row.to_json()
    assert (found["tokens_per_s"], found["vllm_ratio"], found["of_limit"], found["bound"]) == (500, 2, 0.5, "memory")
    cells = {str(column.header): list(column.cells) for column in cuda.make_table([row]).columns}
    assert (cells["vLLM*"], cells["ratio"], cells["of limit"]) == (["250"], ["2.00x"], ["50%"])


@dataclass
class FakeEngine:
    """An engine with switches, and a device with one."""

    device: Any
    overlap: bool = True


@dataclass
class FakeCard:
    graphs: bool = False
    batch_invariant: bool = False
    can_vary: bool = True


def test_a_switch_is_turned_and_turned_back() -> None:
    engine: Any = FakeEngine(FakeCard())
    overlap, graphs, invariant = cuda.SWITCHES
    assert graphs.find(engine) is None  # off, and so not to be had
    with cuda.turned(overlap, engine), cuda.turned(invariant, engine):
        assert (engine.overlap, engine.device.batch_invariant) == (False, True)
    assert (engine.overlap, engine.device.batch_invariant) == (True, False)
    assert Switch("none", ("nothing",)).find(engine) is None


def test_variants_are_compared_turn_by_turn() -> None:
    def samples(*rates: float) -> dict[int, list[Sample]]:
        return {1: [Sample(1.0, rate, 1.0, 1.0, 1.0) for rate in rates]}

    table = cuda.switch_table([Variant("as it is", None, samples(100, 200)), Variant("b", None, samples(50, 100))])
    assert list(table.columns[-1].cells) == ["1.00x", "0.50x"]


def test_the_gain_is_of_the_best_batch_over_batch_one() -> None:
    cells = [Cell("cpu", batch, wait, 8, rate, 1, 1) for batch, wait, rate in ((1, 0, 10), (1, 10, 9), (8, 0, 40))]
    assert cuda.gain(cells) == 4.0
    assert cuda.gain(cells[2:]) is None


def test_kernels_are_told_for_one_step_the_slowest_first() -> None:
    kernels = kernels_of([("norm", 60, 100.0), ("matmul", 120, 300.0)], steps=20)
    assert kernels == [Kernel("matmul", 6.0, 15.0, 0.75), Kernel("norm", 3.0, 5.0, 0.25)]
    many = tuple(Kernel(f"k{i}", 1.0, 2.0, 0.04) for i in range(25))
    profile = Profile(16, 20, many, device_ms=0.06, step_ms=0.07)
    table = profile_table(profile)
    rows = list(zip(*[column.cells for column in table.columns], strict=True))
    assert rows[18][:3] == ("7 others", "7.0", "14.0")
    assert [row[2] for row in rows[19:]] == ["50.0", "60.0", "70.0"]
