"""`knee report`: a page beside the record, or the log of a folder; one line and code 2 for anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from knee.cli.report import command
from knee.errors import RecordError, UserError
from knee.lab.report import to_html
from tests.lab import samples as plain
from tests.lab.report import samples

RUN = "20250131-123456-a"


def call(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)


def call_for_error(*arguments: object) -> Result:
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 2
    return result


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder with a sweep as it lies on disk, its record not yet judged."""
    spec, requests, steps = samples.sweep(repeats=3, sizes=(1, 4), requests=6)
    folder = tmp_path / "runs" / RUN
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(spec.model_dump_json())
    (folder / "record.json").write_text(spec.draft.model_dump_json())
    (folder / "requests.jsonl").write_text("".join(f"{row.model_dump_json()}\n" for row in requests))
    (folder / "steps.jsonl").write_text("".join(f"{step.model_dump_json()}\n" for step in steps))
    return tmp_path / "runs"


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_the_page_is_made_from_spec_and_rows_and_its_path_printed(runs: Path, lang: str) -> None:
    result = call("latest", "--out", runs, "--lang", lang)
    assert result.stdout == f"{runs / RUN / 'report.html'}\n"
    judged = samples.judged(repeats=3, sizes=(1, 4), requests=6)
    assert (runs / RUN / "report.html").read_text() == to_html(*judged, lang)  # type: ignore[arg-type]


def test_a_run_of_an_earlier_knee_needs_no_spec(tmp_path: Path) -> None:
    folder = tmp_path / RUN
    folder.mkdir()
    (folder / "record.json").write_text(plain.record("kvcache").model_dump_json())
    result = call(folder)
    assert "requests.jsonl is missing" in result.stderr
    assert (folder / "report.html").read_text().startswith("<!doctype html>")


def test_a_page_is_replaced_whole_and_leaves_nothing_beside_it(runs: Path) -> None:
    page = runs / RUN / "report.html"
    page.write_text("old")
    call("latest", "--out", runs)
    assert "</html>" in page.read_text()
    assert not list((runs / RUN).glob(".report*"))


def test_a_folder_that_cannot_be_written_is_one_line(runs: Path) -> None:
    (runs / RUN / "report.html").mkdir()
    with pytest.raises(RecordError, match="cannot write"):
        call("latest", "--out", runs)
    assert not list((runs / RUN).glob(".report*"))


def test_the_log_goes_to_stdout_or_to_a_file(runs: Path, tmp_path: Path) -> None:
    printed = call("--log", runs, "--lang", "zh").stdout
    assert "实验日志" in printed
    assert RUN in printed
    target = tmp_path / "log.md"
    assert call("--log", runs, "--lang", "zh", "--output", target).stdout == f"{target}\n"
    assert target.read_text() == printed


def test_a_report_can_be_written_elsewhere(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert call("latest", "--output", page, "--out", runs).stdout.strip() == str(page)
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_log_of_no_folder_is_refused_and_overwrites_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        call("--log", tmp_path / "typo", "--output", tmp_path / "log.md")
    assert not (tmp_path / "log.md").exists()


def test_exactly_one_of_run_and_log(runs: Path) -> None:
    for arguments in ([], ["latest", "--log", runs]):
        result = call_for_error(*arguments)
        assert result.stdout == ""
        assert [line for line in result.stderr.splitlines() if line.startswith("Error:")] != []
