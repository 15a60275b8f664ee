"""`knee compare` from the command line: tables in both languages, JSON, refusals, and long tables kept short."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from knee.cli import baseline, compare, main
from knee.errors import RecordError, UserError
from knee.lab.records import Record, Warning_
from knee.lab.runs import RunFolder
from knee.lab.sweep_records import GpuUse, SweepMetrics
from tests.lab.samples import BASELINE, KVCACHE, METRICS, record, run_spec
from tests.lab.test_compare import SIZES, cell, five_of_each, noisy, sweep

NASTY = "a\x1b[31m\u202eb [bold]c"


def call(out: Path, *arguments: object) -> Result:
    words = [str(argument) for argument in (*arguments, "--out", out)]
    return CliRunner().invoke(compare.command, words, catch_exceptions=False, env={"COLUMNS": "100"})


def keep(out: Path, made: Record, name: str) -> Path:
    named = made.model_copy(update={"name": name})
    with RunFolder.create(out, run_spec(named)) as run:
        run.finish(named)
    (run.path / "spec.json").unlink()  # what these records hold was made up, there are no rows to judge it from
    return run.path


def two(out: Path, a: Record, b: Record, *more: str) -> Result:
    return call(out, keep(out, a, "one"), keep(out, b, "two"), *more)


def test_a_small_table_has_every_metric_with_its_change_and_verdict(tmp_path: Path) -> None:
    draw, faster = noisy(1), noisy(2, factors={"output_throughput": 1.5})
    runs = [sweep([cell(size, 5, one, ["output_throughput", "e2el_ms"]) for size in (1, 4)]) for one in (draw, faster)]
    page = two(tmp_path, *runs).stdout
    assert "Tokens: the same in both runs." in page
    assert re.search(r"dynamic \(1 / 10 ms\)\n +tokens/s +\d+\.\d +\d+\.\d +\+5\d % \[\+\d+, \+\d+\] +better", page)
    assert re.search(r"latency ms .* cannot tell", page)
    assert page.rstrip().endswith("B against A: 2 better, 0 worse, 2 cannot be told apart.")


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_same_work_on_a_processor_and_on_a_gpu(tmp_path: Path, lang: str) -> None:
    use = GpuUse(seconds=2.0, utilization=0.5, energy_j=500.0, joules_per_token=1.5, missing=["GPU clock: unknown"])
    draw, faster = noisy(1), noisy(2, factors={"output_throughput": 20.0})
    on_cpu, on_gpu = (sweep([cell(size, 5, one, ["output_throughput"]) for size in (1, 4)]) for one in (draw, faster))
    assert isinstance(on_gpu.metrics, SweepMetrics)
    cells = [one.model_copy(update={"gpu": use}) for one in on_gpu.metrics.cells]
    model = on_gpu.model.model_copy(update={"device": "cuda", "dtype": "bfloat16"})
    on_gpu = on_gpu.model_copy(
        update={"model": model, "metrics": on_gpu.metrics.model_copy(update={"cells": cells}), "notes": use.missing}
    )
    page = two(tmp_path, on_cpu, on_gpu, "--lang", lang).stdout
    assert re.search(r"model\.device +cpu +cuda", page)
    assert re.search(r"model\.dtype +float32 +bfloat16", page)
    found = json.loads(two(tmp_path, on_cpu, on_gpu, "--json").stdout)
    assert {"key": "model.device", "a": "cpu", "b": "cuda"} in found["differences"]


def test_many_cells_without_a_difference_are_counted_and_not_shown(tmp_path: Path) -> None:
    slower = sweep([cell(size, 5, noisy(9, factors={"e2el_ms": 2.0 if size == 32 else 1.0})) for size in SIZES])
    page = two(tmp_path, five_of_each(8), slower).stdout
    assert "In 5 cells nothing can be told apart" in page
    assert re.search(r"dynamic \(32 / 10 ms\)\n +tokens/s", page)
    assert not re.search(r"dynamic \(16 / 10 ms\)\n +tokens/s", page)


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_every_kind_in_both_languages(tmp_path: Path, kind: str, lang: str) -> None:
    result = two(tmp_path, record(kind), record(kind), "--lang", lang)
    assert result.exit_code == 0
    chinese = "".join(result.stdout.split())
    assert ("同一进程内的各步共享" in chinese) == (lang == "zh" and kind != "sweep")
    assert ("one process each" in " ".join(result.stdout.split())) == (lang == "en" and kind != "sweep")


def test_a_single_value_says_that_it_cannot_tell(tmp_path: Path) -> None:
    page = two(tmp_path, record(), record()).stdout
    assert re.search(r"prefill, cold, ms .* cannot tell: n = 1", page)


def test_different_work_is_refused_and_with_anyway_said_before_the_table(tmp_path: Path) -> None:
    other = record(metrics=BASELINE.model_copy(update={"token_ids": [7]}), kv_cache="off")
    with pytest.raises(UserError, match=r"kv_cache, tokens differ.*--anyway"):
        two(tmp_path, record(), other)
    page = two(tmp_path, record(), other, "--anyway").stdout
    assert page.index("Tokens: they differ.") < page.index("kv_cache, tokens differ") < page.index("decode step")


def test_cells_whose_tokens_differ_are_named_as_people_call_them(tmp_path: Path) -> None:
    cells = [*KVCACHE.cells[:-1], KVCACHE.cells[-1].model_copy(update={"token_ids_sha256": "1" * 64})]
    other = record("kvcache", metrics=KVCACHE.model_copy(update={"cells": cells}))
    assert "differ, in prompt of 200 tokens, KV cache off." in two(
        tmp_path, record("kvcache"), other, "--anyway"
    ).stdout.replace("\n    ", " ")


def test_what_else_differs_stands_below_with_both_values(tmp_path: Path) -> None:
    other = record(warnings=[Warning_(code="swap", message="1.00 GiB of swap are in use")])
    other.hardware.isa, other.model.dtype = ["avx2"], "int8"
    page = two(tmp_path, record(), other).stdout
    assert re.search(r"hardware\.isa +avx2, avx512_bf16 +avx2\n", page)
    assert re.search(r"model\.dtype +float32 +int8\n", page)
    assert "Only B was warned: 1.00 GiB of swap are in use" in page
    assert "Nothing else differs." in two(tmp_path, record(), record()).stdout


def test_nothing_in_common_is_said(tmp_path: Path) -> None:
    page = two(tmp_path, sweep([cell(1, 3, noisy(1))]), sweep([cell(2, 3, noisy(1))])).stdout
    assert "Tokens: unknown" in page
    assert "Only in A: dynamic (1 / 10 ms)." in page.replace("\u00a0", " ")
    assert page.rstrip().endswith("the runs have no metric in common.")


def test_json_is_one_document_with_both_runs(tmp_path: Path) -> None:
    result = two(tmp_path, five_of_each(1), five_of_each(2), "--json")
    found = json.loads(result.stdout)
    assert [Path(run).name.split("-", 2)[2] for run in found["runs"]] == ["one", "two"]
    assert (found["tokens"], len(found["changes"]), found["one_process"]) == ("same", 54, False)
    assert set(found["changes"][0]["effect"]) == {"verdict", "change", "low", "high", "n"}


def test_nothing_in_a_record_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    other: Any = record(warnings=[Warning_(code=NASTY, message=NASTY)], options={NASTY: [NASTY]})
    other.model.name = other.hardware.cpu = NASTY
    page = two(tmp_path, record(), other).stdout
    assert "[bold]c" in page
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)


def test_a_run_that_is_not_there_says_how_to_find_one(tmp_path: Path) -> None:
    keep(tmp_path, record(), "one")
    with pytest.raises(RecordError, match="knee list"):
        call(tmp_path, "one", "nothing")


def test_two_runs_by_their_names_from_the_command_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--model", str(model), "--device", "reference", "--max-new-tokens", "4", "--out", str(tmp_path)]
    for name in ("first", "second"):
        CliRunner().invoke(baseline.command, [*short, "--name", name], catch_exceptions=False)
    with pytest.raises(SystemExit) as left:
        main.main(["compare", "first", "second", "--out", str(tmp_path)])
    assert left.value.code == 0
    assert "Tokens: the same in both runs." in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main.main(["compare", "first", "third", "--out", str(tmp_path)])
    assert left.value.code == 2
