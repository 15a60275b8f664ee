"""The experiments from the command line: files, JSON, tables in both languages, and bad input before work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from knee.cli import baseline, inspect, kvcache, models, sweep
from knee.errors import KneeError, UserError
from knee.lab import sweep as lab
from knee.lab.records import RequestRow
from knee.lab.runs import list_runs, read_run
from knee.lab.trial import Trial
from knee.lab.worker import InThisProcess

SHORT: dict[str, tuple[click.Command, list[str]]] = {
    "baseline": (baseline.command, ["--max-new-tokens", "4"]),
    "inspect": (inspect.command, ["--max-new-tokens", "4"]),
    "kvcache": (kvcache.command, ["--max-new-tokens", "4", "--prompt-lengths", "5,9"]),
    "sweep": (
        sweep.command,
        ["--max-new-tokens", "4", "--batch-sizes", "1,4", "--repeats", "1"],
    ),
}


def call(kind: str, model: Path, out: Path, *more: str) -> Result:
    command, short = SHORT[kind]
    arguments = [*short, "--model", str(model), "--out", str(out), "--device", "reference", *more]
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials of a sweep run on a model that this process loads, where all is patched that a test patches.

    Faster, too, as it also leaves out the machine's limits; and no trial is void on a machine that is busy.
    """
    monkeypatch.setattr(Trial, "late", False)
    monkeypatch.setattr(sweep, "make_runner", lambda choice: InThisProcess(choice.load()))
    monkeypatch.setattr(lab, "measure_limits", lambda *_: None)


def document(kind: str, model: Path, out: Path, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(call(kind, model, out, *more, "--json").stdout)
    return found


@pytest.mark.parametrize("kind", SHORT)
def test_json_is_the_record_that_is_kept(kind: str, model: Path, tmp_path: Path) -> None:
    found = document(kind, model, tmp_path)
    kept = read_run(Path(found.pop("path")))
    assert kept.problems == []
    assert kept.record.model_dump(mode="json") == found
    assert (found["kind"], found["name"], found["status"]) == (kind, kind, "done")
    assert found["model"]["device"] == "reference"
    assert found["options"]["max_new_tokens"] == 4
    assert found["options"]["block_size"] == 16
    assert found["options"].get("max_batched_tokens") == (512 if kind == "sweep" else None)
    assert kept.requests
    assert kept.steps
    assert (kept.path / "record.md").exists()


@pytest.mark.parametrize("kind", SHORT)
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_table_is_on_stdout_and_the_rest_is_not(kind: str, lang: str, model: Path, tmp_path: Path) -> None:
    result = call(kind, model, tmp_path, "--lang", lang, "--name", "a/../b")
    [folder] = tmp_path.iterdir()
    assert result.exit_code == 0
    assert "ms" in result.stdout
    assert str(folder) not in result.stdout
    assert str(folder) in result.stderr
    assert ("模型" in (folder / "record.md").read_text()) == (lang == "zh")
    assert max(map(len, result.stdout.splitlines())) < 200


def test_baseline_has_the_contract_s_metrics(model: Path, tmp_path: Path) -> None:
    metrics = document("baseline", model, tmp_path)["metrics"]
    assert (metrics["prompt_tokens"], metrics["output_tokens"], metrics["decode_steps"]) == (52, 4, 3)
    assert metrics["tokenize_ms"] > 0
    assert len(metrics["prefill_runs_ms"]) == 5
    assert metrics["kv_cache_shape"] == [1, 1, 55, 8]
    assert metrics["gpu_utilization"] is None or 0 <= metrics["gpu_utilization"] <= 1


def test_baseline_samples_with_its_seed(model: Path, tmp_path: Path) -> None:
    arguments = ("--temperature", "2", "--seed")
    tokens = [document("baseline", model, tmp_path, *arguments, s)["metrics"]["token_ids"] for s in ("1", "1", "2")]
    assert tokens[0] == tokens[1] != tokens[2]


def test_inspect_gives_the_tokens_of_generate(model: Path, tmp_path: Path) -> None:
    metrics = document("inspect", model, tmp_path)["metrics"]
    assert metrics["matches_generate"]
    assert metrics["kv_cache_off"]["same_tokens"]
    assert metrics["prefill"]["logits_shape"] == [1, 52, 259]
    assert [step["kv_len"] for step in metrics["steps"]] == [53, 54, 55]


def test_kvcache_runs_every_length_on_and_off(model: Path, tmp_path: Path) -> None:
    found = document("kvcache", model, tmp_path)
    cells = [(cell["prompt_length"], cell["kv_cache"]) for cell in found["metrics"]["cells"]]
    assert cells == [(5, "on"), (5, "off"), (9, "on"), (9, "off")]
    assert {len(cell["token_ms"]) for cell in found["metrics"]["cells"]} == {4}
    assert found["metrics"]["same_tokens"]
    assert found["workload"]["prompt_tokens"] == [5, 9]


EVERY = ("--policies", "dynamic,continuous", "--wait-ms", "0,5", "--repeats", "2")


@pytest.mark.usefixtures("in_this_process")
def test_sweep_has_a_cell_for_every_setting(model: Path, tmp_path: Path) -> None:
    found = document("sweep", model, tmp_path, *EVERY)
    metrics = found["metrics"]
    settings = [(cell["policy"], cell["max_batch_size"], cell["max_wait_ms"]) for cell in metrics["cells"]]
    assert settings == [
        ("dynamic", 1, 0),
        ("dynamic", 1, 5),
        ("dynamic", 4, 0),
        ("dynamic", 4, 5),
        ("continuous", 1, None),
        ("continuous", 4, None),
    ]
    assert {cell["output_tokens"] for cell in metrics["cells"]} == {64}
    assert {len(cell["repeats"]) for cell in metrics["cells"]} == {2}
    assert metrics["same_tokens"]
    assert metrics["knee"]["cell"] in range(6)
    assert {metrics["recommendations"][name]["verdict"] for name in ("chat", "api", "offline")} == {"cannot_tell"}
    assert metrics["recommendations"]["slo"] is None
    assert {warning["code"] for warning in found["warnings"]} >= {"few_samples"}
    assert len(found["workload"]["prompts"]) == 16


def test_every_trial_of_a_sweep_has_a_process_of_its_own_and_says_what_it_was_like(model: Path, tmp_path: Path) -> None:
    metrics = document("sweep", model, tmp_path)["metrics"]
    assert {(trial["cell"], trial["repeat"]) for trial in metrics["trials"]} == {(0, 0), (1, 0)}
    for trial in metrics["trials"]:
        assert trial["load_ms"] > 0
        assert trial["warm_up"]
        assert trial["solo"]["tokens"] == 4
        assert min(trial["pulse_ms"]) > 0
        assert trial["other_load"] >= 0
    assert metrics["limits"]["read_gb_s"] > 0
    assert metrics["costs"]["weight_bytes"] > 0


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_with_limits_counts_the_requests_within_them(model: Path, tmp_path: Path) -> None:
    generous = document("sweep", model, tmp_path, "--slo", "ttft:60000,e2el:60000")["metrics"]
    assert all(cell["goodput"] == pytest.approx(cell["request_throughput"]) for cell in generous["cells"])
    assert generous["recommendations"]["slo"]["limits"] == {"ttft": 60000.0, "e2el": 60000.0}
    strict = document("sweep", model, tmp_path, "--slo", "ttft:0.000001")["metrics"]
    assert {cell["goodput"] for cell in strict["cells"]} == {0.0}
    assert strict["recommendations"]["slo"]["verdict"] == "cannot_tell"


@pytest.mark.usefixtures("in_this_process")
def test_sweep_takes_prompts_from_a_file_and_runs_all_of_them(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(f'{{"prompt_ids": [{n}, 2]}}\n' for n in range(20)))
    found = document("sweep", model, tmp_path / "runs", "--prompts-file", str(file), "--arrival", "poisson:2000")
    assert found["workload"]["requests"] == 20
    assert found["workload"]["arrival"] == "poisson:2000"
    assert found["workload"]["prompts"][3] == [3, 2]
    assert len(found["workload"]["times"]) == 20


TRACE = """{"arrival": 10.02, "prompt_length": 7, "output_length": 2}
{"arrival": 10.00, "prompt": "Why?", "output_length": 6}
{"arrival": 10.01, "prompt_ids": [5, 6]}
"""


def rows_of(found: dict[str, Any]) -> list[RequestRow]:
    return read_run(Path(found["path"])).requests


@pytest.mark.usefixtures("in_this_process")
def test_a_trace_is_replayed_with_its_times_prompts_and_lengths(model: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(TRACE)
    found = document("sweep", model, tmp_path / "runs", "--arrival", f"trace:{file}")
    workload = found["workload"]
    assert (workload["requests"], workload["prompt_tokens"], workload["new_tokens"]) == (3, [4, 2, 7], [6, 4, 2])
    assert workload["times"] == pytest.approx([0.0, 0.01, 0.02])
    assert workload["max_new_tokens"] == 6
    first = [(row.prompt_tokens, row.output_tokens, row.scheduled_at) for row in rows_of(found)[:3]]
    assert first == [(4, 6, 0.0), (2, 4, pytest.approx(0.01)), (7, 2, pytest.approx(0.02))]
    short = document("sweep", model, tmp_path / "runs", "--arrival", f"trace:{file}", "--requests", "2")
    assert short["workload"]["prompt_tokens"] == [4, 2]


@pytest.mark.usefixtures("in_this_process")
def test_a_trace_of_lengths_needs_no_tokenizer(mute_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text('{"arrival": 0, "prompt_length": 9}\n{"arrival": 0, "prompt_length": 3}\n')
    found = document("sweep", mute_model, tmp_path / "runs", "--arrival", f"trace:{file}")
    assert found["workload"]["prompt_tokens"] == [9, 3]
    assert found["workload"]["new_tokens"] is None


@pytest.mark.usefixtures("in_this_process")
def test_users_of_a_closed_loop_wait_for_their_answers(model: Path, tmp_path: Path) -> None:
    found = document("sweep", model, tmp_path, "--arrival", "closed:2", "--requests", "6")
    assert found["workload"]["times"] is None
    for cell in (0, 1):
        rows = [row for row in rows_of(found) if row.cell == cell]
        assert [row.scheduled_at for row in rows[:2]] == [0.0, 0.0]
        ends = {row.finished_at for row in rows}
        assert all(row.scheduled_at in ends for row in rows[2:])


@pytest.mark.usefixtures("in_this_process")
def test_a_sweep_that_its_budget_has_room_for_runs_whole(model: Path, tmp_path: Path) -> None:
    found = document("sweep", model, tmp_path, "--budget", "1h")
    assert found["options"]["budget"] == "1h"
    assert found["metrics"]["left_out"] == []
    assert [len(cell["repeats"]) for cell in found["metrics"]["cells"]] == [1, 1]


@pytest.mark.usefixtures("in_this_process")
def test_tokens_that_differ_are_an_error_after_the_record_is_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from knee.devices.reference import ReferenceDevice

    execute = ReferenceDevice.execute

    def padded(self: Any, batch: Any) -> Any:
        outputs = execute(self, batch)
        return [type(out)(token=7) for out in outputs] if len(batch) == 4 else outputs

    monkeypatch.setattr(ReferenceDevice, "execute", padded)
    result = call("sweep", model, tmp_path, "--json")
    assert result.exit_code == 1
    assert not json.loads(result.stdout)["metrics"]["same_tokens"]
    [entry] = list_runs(tmp_path)
    assert entry.record is not None
    assert entry.record.status == "done"
    assert "cannot be compared" in result.stderr
    assert "defect of knee" in result.stderr


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("baseline", ["--prompt", ""], "empty"),
        ("baseline", ["--prompt", "a", "--prompt", "b"], "2 prompts"),
        ("baseline", ["--prompt-ids", "1,999"], "999 is not in the vocabulary"),
        ("baseline", ["--max-new-tokens", "500"], "context"),
        ("baseline", ["--warm-prefills", "1"], "at least 5"),
        ("baseline", ["--prompt", "a", "--prompt-ids", "1"], "both given"),
        ("baseline", ["--prompts-file", "/nowhere.jsonl"], "cannot read"),
        ("inspect", ["--max-new-tokens", "-3"], "max_new_tokens is -3"),
        ("kvcache", ["--prompt-lengths", "10,510"], "context"),
        ("kvcache", ["--prompt-lengths", "0"], "at least 1"),
        ("sweep", ["--batch-sizes", "0"], "batch size is 0"),
        ("sweep", ["--wait-ms", "-1"], "wait window is -1"),
        ("sweep", ["--requests", "0"], "requests is 0"),
        ("sweep", ["--repeats", "0"], "repeats is 0"),
        ("sweep", ["--slo", "p99:5"], "ttft, tpot, e2el"),
        ("sweep", ["--policies", "magic", "--wait-ms", "0"], "only policy dynamic"),
        ("sweep", ["--policies", "magic,dynamic"], "unknown batch policy 'magic'"),
        ("sweep", ["--arrival", "rate:0"], "above 0"),
        ("sweep", ["--arrival", "sometimes"], "closed:N .users. or trace:FILE"),
        ("sweep", ["--arrival", "gamma:3:0"], "CV .* above 0"),
        ("sweep", ["--arrival", "closed:0"], "at least 1"),
        ("sweep", ["--arrival", "trace:/nowhere.jsonl"], "cannot read the trace"),
        ("sweep", ["--arrival", "{long}"], "a prompt of 513 tokens: the context is 512"),
        ("sweep", ["--arrival", "{short}", "--prompt", "a"], "a trace has its own prompts"),
        ("sweep", ["--arrival", "{short}", "--requests", "4"], "has 3 requests and 4 are asked for"),
        ("sweep", ["--budget", "soon"], "like 90s"),
        ("sweep", ["--budget", "3s"], "too short: even 2 of the"),
        ("sweep", ["--resume", "latest"], "no runs in"),
        ("sweep", ["--max-batched-tokens", "2"], "token budget"),
        ("sweep", ["--max-new-tokens", "480"], "context"),
    ],
)
def test_bad_input_leaves_no_run(kind: str, arguments: list[str], message: str, model: Path, tmp_path: Path) -> None:
    short, long = tmp_path / "short.jsonl", tmp_path / "long.jsonl"
    short.write_text(TRACE)
    long.write_text('{"arrival": 0, "prompt_length": 513}')
    arguments = [one.format(short=f"trace:{short}", long=f"trace:{long}") for one in arguments]
    with pytest.raises(UserError, match=message):
        call(kind, model, tmp_path / "runs", *arguments)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("kind", SHORT)
def test_what_options_alone_decide_is_refused_before_a_model_is_looked_for(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="max_new_tokens"):
        call(kind, Path("/nowhere"), tmp_path, "--max-new-tokens", "0")
    with pytest.raises(KneeError, match="nowhere"):
        call(kind, Path("/nowhere"), tmp_path)


def test_models_can_be_listed_found_and_missed(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KNEE_CACHE", str(tmp_path))
    runner = CliRunner()
    listed = json.loads(runner.invoke(models.command, ["list", "--json"]).stdout)
    assert [entry["alias"] for entry in listed] == ["smollm2-135m", "distilgpt2"]
    for lang in ("en", "zh"):
        assert "smollm2-135m" in runner.invoke(models.command, ["list", "--lang", lang]).stdout
    assert runner.invoke(models.command, ["path", str(model)]).stdout == f"{model}\n"
    assert json.loads(runner.invoke(models.command, ["pull", str(model), "--json"]).stdout)["path"] == str(model)
    with pytest.raises(UserError, match="knee models pull smollm2-135m"):
        runner.invoke(models.command, ["path", "smollm2-135m"], catch_exceptions=False)
    assert "98 MB" in runner.invoke(models.command, ["list"]).stdout
    with pytest.raises(UserError, match="no alias"):
        runner.invoke(models.command, ["path", "nosuch"], catch_exceptions=False)
