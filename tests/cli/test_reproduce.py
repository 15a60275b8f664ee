"""`knee reproduce` from the command line: from the record alone, tokens first, refusals before anything runs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from knee.cli import baseline, inspect, kvcache, reproduce, sweep
from knee.errors import UserError
from knee.lab import sweep as lab
from knee.lab.measure import Measured
from knee.lab.plan import Job
from knee.lab.runs import find_run, read_run
from knee.lab.worker import FreshProcess, InThisProcess

ONE: dict[str, tuple[click.Command, list[str]]] = {
    "baseline": (baseline.command, ["--temperature", "2", "--seed", "5"]),
    "inspect": (inspect.command, ["--prompt", "Name three rivers."]),
    "kvcache": (kvcache.command, ["--prompt-lengths", "5,9", "--prompt", "Name three rivers."]),
}
CELLS = ["--batch-sizes", "2", "--policies", "dynamic,continuous", "--repeats", "1"]


@pytest.fixture(autouse=True)
def undisturbed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials run here and always count, however busy this machine is; what it can do is measured elsewhere."""

    def run_here(self: FreshProcess, job: Job) -> Measured:
        found = InThisProcess(self.choice.load())(job)
        found.trial.void = False
        return found

    monkeypatch.setattr(FreshProcess, "__call__", run_here)
    monkeypatch.setattr(lab, "roofs", lambda *_: lab.no_roofs)


def call(command: click.Command, *arguments: object, catch: bool = False) -> Result:
    words = [str(argument) for argument in arguments]
    return CliRunner().invoke(command, words, catch_exceptions=catch, env={"COLUMNS": "100"})


def run(command: click.Command, model: Path, out: Path, *more: object) -> Path:
    fixed = ["--model", model, "--device", "reference", "--max-new-tokens", "4", "--out", out, "--name", "mine"]
    assert call(command, *fixed, *more).exit_code == 0
    return find_run(out, "mine")


def again(out: Path, *more: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(reproduce.command, "mine", "--out", out, "--json", *more).stdout)
    return found


def work(path: Path | str) -> dict[str, Any]:
    """What a run asked for."""
    record = read_run(Path(path)).record
    return record.workload.model_dump(exclude={"arrival"}) | {"kind": record.kind, "kv_cache": record.kv_cache}


@pytest.mark.parametrize("kind", ONE)
def test_one_request_is_reproduced_to_the_token(kind: str, model: Path, tmp_path: Path) -> None:
    command, more = ONE[kind]
    before = run(command, model, tmp_path, *more)
    found = again(tmp_path)
    assert (found["tokens"], found["same_model"], found["comparison"]["unequal"]) == ("same", True, [])
    assert found["runs"][0] == str(before)
    assert Path(found["runs"][1]).name.endswith("-mine-reproduced")
    assert work(found["runs"][1]) == work(before)


def test_a_sweep_needs_neither_its_prompts_file_nor_its_folder(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt_ids": [7, 8, 9]}\n{"prompt": "ab"}\n{"prompt": "c"}\n')
    more = ["--prompts-file", file, "--requests", "5", "--arrival", "poisson:900", "--seed", "4", "--kv-cache", "off"]
    before = run(sweep.command, model, tmp_path / "runs", *CELLS, *more)
    file.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    found = again(tmp_path / "runs")
    assert (found["tokens"], found["comparison"]["unequal"]) == ("same", [])
    assert work(found["runs"][1]) == work(before)


def test_a_trace_is_reproduced_without_its_file(model: Path, tmp_path: Path) -> None:
    lines = [
        {"arrival": 0.1, "prompt_length": 6, "output_length": 3},
        {"arrival": 0.102, "prompt_length": 4, "output_length": 2},
        {"arrival": 0.11, "prompt_ids": [1, 2, 3]},
    ]
    file = tmp_path / "trace.jsonl"
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    before = run(sweep.command, model, tmp_path / "runs", *CELLS, "--arrival", f"trace:{file}")
    file.unlink()
    found = again(tmp_path / "runs")
    assert (found["tokens"], found["comparison"]["unequal"]) == ("same", [])
    assert work(found["runs"][1]) == work(before)
    assert read_run(Path(found["runs"][1])).record.workload.new_tokens == [3, 2, 4]


def test_a_sweep_cut_short_by_a_budget_runs_what_it_had_without_the_budget(model: Path, tmp_path: Path) -> None:
    before = run(sweep.command, model, tmp_path, *CELLS, "--requests", "2")
    spec = json.loads((before / "spec.json").read_text())
    spec["draft"]["options"]["budget"], spec["draft"]["options"]["repeats"] = "1s", 5
    spec["trials"] = [trial for trial in spec["trials"] if trial["cell"] == 1]
    (before / "spec.json").write_text(json.dumps(spec))
    found = again(tmp_path, "--repeats", "2")
    record = read_run(Path(found["runs"][1])).record
    assert [(cell.label, len(cell.repeats)) for cell in record.metrics.cells] == [("continuous (2)", 2)]  # type: ignore[union-attr]
    assert (record.options["budget"], record.options["repeats"]) == (None, 2)
    assert found["tokens"] == "same"


def test_tokens_come_first_and_the_rest_in_both_languages(model: Path, tmp_path: Path) -> None:
    run(baseline.command, model, tmp_path)
    page = call(reproduce.command, "mine", "--out", tmp_path)
    assert page.exit_code == 0
    assert page.stdout.split("\n\n")[1].strip() == "· Tokens: identical."
    assert "lie in the interval" in page.stdout
    assert "Nothing changed in the environment." in page.stdout
    assert "Kept in" in page.stderr
    chinese = call(reproduce.command, "mine", "--out", tmp_path, "--lang", "zh").stdout
    assert "Token：完全一致" in chinese
    assert "环境没有变化" in chinese


def forge(path: Path, *tokens: int) -> None:
    """Let a baseline have given other tokens than it did."""
    spec = json.loads((path / "spec.json").read_text())
    spec["observed"]["token_ids"] = tokens
    (path / "spec.json").write_text(json.dumps(spec))


def test_other_tokens_of_the_same_model_leave_with_exit_code_1(model: Path, tmp_path: Path) -> None:
    forge(run(baseline.command, model, tmp_path), 1, 2, 3, 4)
    page = call(reproduce.command, "mine", "--out", tmp_path)
    assert page.exit_code == 1
    assert "Tokens: NOT identical" in page.stdout.split("\n\n")[1]
    document = call(reproduce.command, "mine", "--out", tmp_path, "--json")
    assert document.exit_code == 1
    assert json.loads(document.stdout)["tokens"] == "differ"


def test_a_model_whose_files_changed_is_refused_unless_asked_for_anyway(model: Path, tmp_path: Path) -> None:
    moved = tmp_path / "model"
    shutil.copytree(model, moved)
    before = run(baseline.command, moved, tmp_path / "runs")
    forge(before, 1, 2, 3, 4)
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 1
    weights.write_bytes(content)
    with pytest.raises(UserError, match="is not the model of the run any more"):
        call(reproduce.command, "mine", "--out", tmp_path / "runs")
    assert len(list((tmp_path / "runs").iterdir())) == 1
    page = call(reproduce.command, "mine", "--out", tmp_path / "runs", "--anyway")
    assert page.exit_code == 0
    assert "the model's files are other ones" in page.stdout


def test_a_model_that_is_gone_is_named(model: Path, tmp_path: Path) -> None:
    moved = tmp_path / "gone"
    shutil.copytree(model, moved)
    run(baseline.command, moved, tmp_path / "runs")
    shutil.rmtree(moved)
    with pytest.raises(UserError, match=str(moved)):
        call(reproduce.command, "mine", "--out", tmp_path / "runs")


def test_a_tokenizer_that_is_gone_is_refused(model: Path, mute_model: Path, tmp_path: Path) -> None:
    moved = tmp_path / "model"
    shutil.copytree(model, moved)
    run(baseline.command, moved, tmp_path / "runs")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (moved / name).unlink()
    assert (moved / "model.safetensors").read_bytes() == (mute_model / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        call(reproduce.command, "mine", "--out", tmp_path / "runs")


def test_repeats_of_one_request_are_refused(model: Path, tmp_path: Path) -> None:
    run(baseline.command, model, tmp_path)
    with pytest.raises(UserError, match="--repeats is for sweeps"):
        call(reproduce.command, "mine", "--out", tmp_path, "--repeats", "3")
