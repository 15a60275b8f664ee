"""Everything after the raw events is pure: `spec.json` and the two files of rows give record and report again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from knee.cli import kvcache, report, sweep
from knee.lab.markdown import to_markdown
from knee.lab.rejudge import rejudged
from knee.lab.runs import find_run, read_run

RAW = ("spec.json", "requests.jsonl", "steps.jsonl")
COMMANDS = {
    "sweep": (sweep.command, ["--batch-sizes", "1,4", "--repeats", "2"]),
    "kvcache": (kvcache.command, ["--prompt-lengths", "5,9"]),
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_raw_rows_and_the_spec_give_the_same_record_and_report_again(kind: str, model: Path, tmp_path: Path) -> None:
    command, arguments = COMMANDS[kind]
    common = ["--model", str(model), "--device", "reference", "--max-new-tokens", "4", "--out", str(tmp_path / "runs")]
    CliRunner().invoke(command, [*arguments, *common], catch_exceptions=False)
    run = find_run(tmp_path / "runs", "latest")
    made = CliRunner().invoke(report.command, [str(run)], catch_exceptions=False)
    assert made.exit_code == 0

    bare = tmp_path / "bare" / run.name
    bare.mkdir(parents=True)
    for name in RAW:
        shutil.copy(run / name, bare / name)
    again = rejudged(read_run(bare)).record
    assert again.model_dump_json(indent=2) + "\n" == (run / "record.json").read_text(encoding="utf-8")
    assert to_markdown(again, "en") == (run / "record.md").read_text(encoding="utf-8")
    CliRunner().invoke(report.command, [str(bare)], catch_exceptions=False)
    assert (bare / "report.html").read_bytes() == (run / "report.html").read_bytes()
