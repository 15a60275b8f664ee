"""The log: every run of a folder by the log's template, in one file, and nothing in a run breaks out of its section."""

from __future__ import annotations

from pathlib import Path

import pytest

from knee.lab.messages import LANGUAGES, Lang, text
from knee.lab.records import Record
from knee.lab.report import to_log
from knee.lab.runs import RunEntry
from tests.lab.samples import METRICS, record

TEMPLATE = ("name", "date", "hardware", "model", "prompt", "batch_policy", "kv_cache", "metrics", "notes")


def entry(made: Record | None, name: str = "20250131-123456-a", problem: str | None = None) -> RunEntry:
    return RunEntry(Path("runs") / name, made, problem)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_each_run_is_a_section_with_every_field_of_the_template(lang: Lang) -> None:
    log = to_log([entry(record(kind), f"20250131-123456-{kind}") for kind in METRICS], lang)
    sections = log.split("\n## ")[1:]
    assert [section.splitlines()[0] for section in sections] == [f"first {kind}" for kind in METRICS]
    for kind, section in zip(METRICS, sections, strict=True):
        assert f"20250131-123456-{kind}" in section
        for field in TEMPLATE:
            assert f"**{text(lang, f'log.{field}')}**" in section
    assert log.startswith(f"# {text(lang, 'report.log.title')}\n")


def test_runs_keep_their_order_and_unreadable_ones_end_the_log_with_their_reason() -> None:
    log = to_log(
        [entry(record(name="young")), entry(record(name="old")), entry(None, "torn_run", "record.json: Field required")]
    )
    assert log.index("## young") < log.index("## old") < log.index("torn\\_run: record.json: Field required")
    assert log.index(text("en", "report.log.unreadable")) > log.index("## old")


def test_only_our_headings_are_headings() -> None:
    sly = record(name="# not a heading", notes=["## nor this\n# nor that"], command=["#", "x"])
    log = to_log([entry(sly), entry(record("sweep"))])
    headings = [line for line in log.splitlines() if line.startswith("#")]
    assert [line for line in headings if "not a" in line or "nor" in line] == ["## \\# not a heading"]
    assert sum(line.startswith("# ") for line in headings) == 1


def test_a_log_of_nothing_says_so() -> None:
    assert text("zh", "report.log.empty") in to_log([], "zh")
