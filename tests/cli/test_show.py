"""`show`, `list` and `doctor`: JSON is one document, pages come in both languages, terminals are not corrupted."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from knee.cli import doctor, list_runs, show
from knee.errors import RecordError
from knee.lab.judgement.judge import judge
from knee.lab.records import Record
from knee.lab.runs import RunFolder, read_run
from tests.lab.samples import METRICS, record, run_spec

NASTY = "a\x1b[31m\u202eb\x9bc [bold]d"


def call(command: object, *arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)  # type: ignore[arg-type]


def keep(out: Path, made: Record) -> Path:
    with RunFolder.create(out, run_spec(made)) as run:
        run.finish(judge(run.spec, [], []))
    return run.path


def assert_harmless(texts: Sequence[str]) -> None:
    for text in texts:
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", text)


@pytest.mark.parametrize("kind", METRICS)
def test_show_in_a_pipe_is_the_markdown_of_the_record(tmp_path: Path, kind: str) -> None:
    path = keep(tmp_path, record(kind))
    assert call(show.command, path).stdout == (path / "record.md").read_text()
    assert call(show.command, "latest", "--out", tmp_path, "--lang", "zh").stdout == (path / "record.zh.md").read_text()


def test_show_json_is_the_record_and_nothing_else(tmp_path: Path) -> None:
    path = keep(tmp_path, record("sweep"))
    result = call(show.command, "latest", "--out", tmp_path, "--json")
    shown = Record.model_validate(json.loads(result.stdout))
    assert shown == read_run(path).record
    assert shown.metrics == record("sweep").metrics


def test_show_makes_a_record_that_is_gone_again_and_says_so(tmp_path: Path) -> None:
    path = keep(tmp_path, record())
    page = call(show.command, path).stdout
    (path / "record.json").unlink()
    result = call(show.command, path)
    assert result.stdout == page
    assert "record.json is missing" in result.stderr


def test_show_warns_of_a_torn_line_on_stderr_only(tmp_path: Path) -> None:
    path = keep(tmp_path, record())
    (path / "steps.jsonl").write_text('{"cell": 0')
    result = call(show.command, path, "--json")
    json.loads(result.stdout)
    assert "steps.jsonl: line 1, the last, was cut off" in result.stderr


def test_show_of_a_run_that_is_not_there_says_how_to_find_one(tmp_path: Path) -> None:
    keep(tmp_path, record())
    with pytest.raises(RecordError, match="knee list"):
        call(show.command, "nothing", "--out", tmp_path)


def test_list_shows_every_run_even_those_that_cannot_be_read(tmp_path: Path) -> None:
    good = keep(tmp_path, record("sweep", name="[red]批大小"))
    bad = keep(tmp_path, record("inspect"))
    (bad / "record.json").write_text("{}")
    table = call(list_runs.command, "--out", tmp_path).stdout
    assert good.name in table
    assert "[red]批大小" in table
    assert "unreadable" in table
    rows = json.loads(call(list_runs.command, "--out", tmp_path, "--json").stdout)
    by_name = {row["run"]: row for row in rows}
    assert by_name[good.name]["kind"] == "sweep"
    assert "schema_version" in by_name[bad.name]["problem"]


def test_list_of_an_empty_folder_says_so(tmp_path: Path) -> None:
    assert "No runs in" in call(list_runs.command, "--out", tmp_path).stdout
    assert json.loads(call(list_runs.command, "--out", tmp_path, "--json").stdout) == []


def test_nothing_in_a_record_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    made = record("inspect", name=NASTY, notes=[NASTY], command=[NASTY])
    made.workload.prompts = [NASTY]
    made.model.name = made.hardware.cpu = NASTY
    path = keep(tmp_path, made)
    pages = [call(show.command, path), call(list_runs.command, "--out", tmp_path)]
    documents = [call(show.command, path, "--json"), call(list_runs.command, "--out", tmp_path, "--json")]
    assert_harmless([result.stdout for result in pages + documents])


def test_doctor_speaks_both_languages_and_json() -> None:
    assert "Read bandwidth" in call(doctor.command).stdout
    assert "读带宽" in call(doctor.command, "--lang", "zh").stdout
    document = json.loads(call(doctor.command, "--json").stdout)
    assert document["hardware"]["cores"] >= 1


def test_doctor_names_the_native_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from knee.lab import speed
    from tests.lab.test_speed import FakeNative

    monkeypatch.setattr(speed, "find_native", FakeNative)
    monkeypatch.setattr(speed, "choose_isa", lambda: "avx2")
    for lang, names in (("en", "int8 arithmetic"), ("zh", "int8 算力")):
        page = call(doctor.command, "--lang", lang).stdout
        assert re.search(rf"{names} +\S*.*300\.0.*native avx2", page)


@pytest.fixture(autouse=True)
def quick_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    from knee.lab import doctor as lab
    from knee.lab import speed

    monkeypatch.setattr(speed, "_SMALLEST_ARRAYS", 2**20)
    monkeypatch.setattr(speed, "_LARGEST_ARRAYS", 2**20)
    monkeypatch.setattr(speed, "_KERNEL_SECONDS", 0.0)
    monkeypatch.setattr(speed, "_RUNS", range(1, 2))
    monkeypatch.setattr(speed, "_NATIVE_RUNS", range(1, 2))
    monkeypatch.setattr(speed, "_matrix_size", lambda: 64)
    monkeypatch.setattr(lab, "_LOAD_SECONDS", 0.01)
