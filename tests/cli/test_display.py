"""Tables fit the terminal, no number is cut, and both languages say everything."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from knee.cli import display, terminal
from knee.lab.messages import Lang
from knee.lab.progress import Status
from knee.lab.records import Record
from tests.lab.samples import METRICS, record


def shown(monkeypatch: pytest.MonkeyPatch, made: Record, lang: Lang, width: int) -> str:
    screen = io.StringIO()
    monkeypatch.setattr(display, "console", lambda: Console(file=screen, width=width))
    display.print_record(made, lang)
    return screen.getvalue()


@pytest.mark.parametrize("kind", METRICS)
@pytest.mark.parametrize("lang", ["en", "zh"])
@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_page_fits_and_cuts_no_number(monkeypatch: pytest.MonkeyPatch, kind: str, lang: Lang, width: int) -> None:
    for line in shown(monkeypatch, record(kind), lang, width).splitlines():
        assert cell_len(line) <= width
        assert "…" not in line or kind == "inspect"


def test_numbers_of_a_column_have_the_same_decimals() -> None:
    column = display._Column("ms", lambda row: row)
    assert column.cells([88.84, 131.0, None]) == ["88.8", "131.0", "—"]
    assert column.cells([4.03, 5.256]) == ["4.03", "5.26"]
    assert column.cells([0.614, 0.7]) == ["0.614", "0.700"]
    assert column.cells([1432.4, 12.0]) == ["1,432", "12"]
    assert column.cells([]) == []


def test_lines_end_at_spaces_or_between_chinese_characters_and_lose_nothing() -> None:
    words = "从到达算起的平均延迟最低：dynamic (8) 与 continuous (8) 无法区分，请重复。"
    wrapped = display.wrapped(words, 20).plain
    assert max(map(cell_len, wrapped.split("\n"))) <= 20
    assert wrapped.replace("\n", "").replace(" ", "") == words.replace(" ", "")
    assert "dynamic" in wrapped
    assert "continuous" in wrapped


def test_a_baseline_page_has_the_log_s_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    page = shown(monkeypatch, record("baseline"), "en", 100)
    for number in ("98,300.00", "2.51", "434.26", "92.00"):
        assert number in page


def test_nothing_from_a_model_reaches_the_terminal_as_control(monkeypatch: pytest.MonkeyPatch) -> None:
    made = record("baseline")
    assert made.metrics is not None
    evil = made.model_copy(update={"metrics": made.metrics.model_copy(update={"text": "a\x1b[2J\u202e[bold]b"})})
    page = shown(monkeypatch, evil, "en", 100)
    assert "\x1b" not in page
    assert "a\\x1b[2J\\u202e[bold]b" in page


def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    with display.progress_bar() as progress:
        progress(0, 2, "dynamic (8 / 10 ms)")
    assert capsys.readouterr() == ("", "")


def test_progress_says_which_trial_of_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=80)
    monkeypatch.setattr(display, "Console", lambda **_: terminal)
    with display.progress_bar() as progress:
        progress(3, 12, "dynamic (8 / 10 ms)")
    assert "3/12" in screen.getvalue()
    assert "dynamic (8 / 10 ms)" in screen.getvalue()


@pytest.mark.parametrize(("lang", "left", "best"), [("en", "2:05", "best"), ("zh", "2:05", "最佳")])
def test_progress_of_a_sweep_says_what_was_best_so_far_and_the_time_left(
    monkeypatch: pytest.MonkeyPatch, lang: Lang, left: str, best: str
) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(display, "Console", lambda **_: Console(file=screen, force_terminal=True, width=160))
    with display.sweep_progress(lang) as tell:
        tell(Status(0, 12, "static (8)", None, None, None, None))
        first = screen.getvalue()
        tell(Status(3, 12, "static (1)", 124.6, "static (8)", 1234.0, 56.0))
    assert "0/12" in first
    assert best not in first
    later = screen.getvalue()[len(first) :]
    for words in ("3/12", "static (1)", "static (8)", "1234.0", "56", left, best):
        assert words in later


def test_what_to_run_is_last_on_the_page_and_says_what_was_left_out_before(monkeypatch: pytest.MonkeyPatch) -> None:
    page = shown(monkeypatch, record("sweep", notes=["By hand."]), "en", 100)
    parts = [
        "Batch 4 beats <batch 1>.",
        "There was no time for <batch 8>.",
        "By hand.",
        "Live chat",
        "For chat: dynamic",
    ]
    parts += ["API service", "Offline work", "Too few <repeats> to tell.", "Knee", "The knee is *dynamic*"]
    places = [page.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)


@pytest.mark.parametrize(("width", "hides"), [(80, True), (160, False)])
def test_columns_that_are_left_out_are_counted(monkeypatch: pytest.MonkeyPatch, width: int, hides: bool) -> None:
    page = shown(monkeypatch, record("sweep"), "en", width)
    assert ("Columns hidden at this width: " in page) == hides


@pytest.mark.parametrize(("columns", "width"), [("60", 60), (None, 100), ("many", 100), ("0", 100)])
@pytest.mark.parametrize("kind", METRICS)
def test_a_pipe_has_the_width_of_columns_and_no_spaces_at_line_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str, columns: str | None, width: int
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert terminal.console().width == width
    display.print_record(record(kind), "en")
    for line in capsys.readouterr().out.split("\n"):
        assert cell_len(line) <= width
        assert line == line.rstrip()


def test_a_list_in_a_pipe_does_not_fold_names(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    terminal.print_table(["name"], [["x" * 500]])
    assert "x" * 500 in capsys.readouterr().out
