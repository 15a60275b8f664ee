"""Figures: nothing by colour alone, labels apart, small and self-contained SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import partial
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knee.lab.messages import text
from knee.lab.records import RequestRow
from knee.lab.report.figures import canvas, effect, heatmap, shares, step_context, step_rows, timeline, tradeoff
from knee.lab.report.figures.series import looks
from knee.lab.sweep_records import Effect, Interval, Knee, SweepCell, SweepMetrics
from tests.lab import samples as plain
from tests.lab.report import samples

say = partial(text, "en")


@pytest.fixture(autouse=True)
def _drawing() -> Iterator[None]:
    with canvas.drawing():
        yield


def swept(**changes: object) -> SweepMetrics:
    record, _, _ = samples.judged(sizes=(1, 4), requests=12)
    assert isinstance(record.metrics, SweepMetrics)
    return record.metrics.model_copy(update=changes)


def test_no_two_lines_differ_by_colour_alone() -> None:
    cells = [
        plain.sweep_cell(1).model_copy(update={"policy": policy, "max_wait_ms": wait})
        for policy, waits in (
            ("dynamic", (0.0, 10.0, 20.0, 50.0, 100.0)),
            ("static", (None,)),
            ("single", (None,)),
            ("continuous", (None,)),
            ("mine", (None,)),
        )
        for wait in waits
    ]
    shapes = [(look.marker, str(look.dash)) for look in looks(cells).values()]
    assert len(set(shapes)) == len(shapes) == 9


def point(batch: int, latency: float, throughput: float) -> SweepCell:
    """A cell somewhere in the picture."""
    exact = {"e2el_ms": latency, "output_throughput": throughput}
    intervals = {name: Interval(value=value, low=value, high=value, n=5) for name, value in exact.items()}
    return plain.sweep_cell(batch).model_copy(update={"intervals": intervals, "max_wait_ms": None})


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1, 3000), st.floats(1, 900)), min_size=1, max_size=30))
def test_labels_of_the_trade_off_never_overlap(cells: list[tuple[int, float, float]]) -> None:
    numbered = [point(*cell).model_copy(update={"cell": number}) for number, cell in enumerate(cells)]
    metrics = SweepMetrics(cells=numbered, tradeoff=[], same_tokens=True, findings=[])
    with canvas.drawing():
        picture = tradeoff.draw(metrics, say)
    assert picture is not None
    labels = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*middle[^>]*>(\d+)</text>', str(picture.svg))
    written = [(float(x), float(y), len(words)) for x, y, words in labels if 24 < float(y) < 380 and float(x) > 60]
    assert written
    for (x, y, long), (other_x, other_y, other_long) in combinations(written, 2):
        assert abs(y - other_y) > 8 or abs(x - other_x) > 3 * (long + other_long)


def test_the_knee_and_its_ties_are_ringed() -> None:
    knee = Knee(
        cell=1,
        label="",
        tied=[0],
        power=Interval(value=1, low=1, high=1, n=5),
        found_batches=[1, 4],
        roofline_batch=None,
        sentence="",
    )
    picture, bare = (tradeoff.draw(swept(knee=one), say) for one in (knee, None))
    assert picture is not None
    assert bare is not None
    words = [key.words for key in picture.keys]
    assert say("report.knee") in words
    assert say("report.tradeoff.tied") in words
    assert len(picture.svg) > len(bare.svg)


def test_the_heat_map_has_a_number_in_every_cell_and_a_dash_where_nothing_was_measured() -> None:
    metrics = swept()
    picture = heatmap.draw(metrics.model_copy(update={"cells": metrics.cells[:-1]}), say)
    assert picture is not None
    assert picture.svg.count(">—</text>") == 2
    assert heatmap.draw(metrics.model_copy(update={"cells": metrics.cells[-2:]}), say) is None


def test_a_timeline_draws_each_state_once_and_counts_what_it_leaves_out() -> None:
    rows = [
        plain.request_row(number).model_copy(update={"request": number, "scheduled_at": number / 100})
        for number in range(timeline.MOST + 2)
    ]
    picture = timeline.draw(rows, "t", "cell", 1.0, say)
    assert "2 more" in picture.caption
    assert len(picture.svg) < 20_000


def test_a_request_that_never_ran_is_drawn_as_far_as_it_got() -> None:
    never = plain.request_row().model_copy(
        update={"prefill_start": None, "first_token_at": None, "finished_at": None, "token_times": []}
    )
    failed: RequestRow = never.model_copy(update={"finish_reason": "error", "finished_at": 0.5})
    assert "svg" in timeline.draw([never, failed], "t", "cell", 0.0, say).svg


def test_the_roofs_are_drawn_and_their_crossing_named_inside_or_outside() -> None:
    metrics = swept()
    assert metrics.knee is not None
    for crossing, words in ((2.0, "cross at 2.00 rows."), (500.0, "beyond what ran here")):
        knee = metrics.knee.model_copy(update={"roofline_batch": crossing})
        picture = step_rows.draw(metrics.model_copy(update={"knee": knee}), say)
        assert picture is not None
        assert words in picture.caption
    bare = [
        time.model_copy(update={"floor_ms": None, "memory_ms": None, "arithmetic_ms": None, "bound": None})
        for time in metrics.step_times
    ]
    picture = step_rows.draw(metrics.model_copy(update={"step_times": bare}), say)
    assert picture is not None
    assert len(picture.keys) == 1
    assert step_rows.draw(metrics.model_copy(update={"step_times": []}), say) is None


def test_without_a_kv_cache_there_is_no_context_to_draw() -> None:
    made, requests, steps = samples.judged(sizes=(1, 4), requests=12)
    assert isinstance(made.metrics, SweepMetrics)
    picture = step_context.draw(made.metrics, requests, steps, say)
    assert picture is not None
    assert any("at least" in key.words for key in picture.keys)  # the roofline
    uncached = [step.model_copy(update={"kv_tokens": 0}) for step in steps]
    assert step_context.draw(made.metrics, requests, uncached, say) is None


def test_the_parts_of_a_bar_make_the_whole() -> None:
    for cell in swept().cells:
        assert cell.explanation is not None
        assert math.isclose(sum(shares.parts(cell.explanation.shares).values()), 1.0, abs_tol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.floats(-1, 1e6), st.floats(-1, 1e6))
def test_an_effect_stays_on_its_paper(change: float, other: float) -> None:
    low, high = sorted((change, other))
    with canvas.drawing():
        svg = effect.draw(Effect(verdict="cannot_tell", change=change, low=low, high=high, n=5), "e")
    assert svg is not None
    xs = [float(x) for x in re.findall(r"[ML] ([\d.-]+) ", str(svg))]
    assert all(-8 <= x <= 158 for x in xs)


@pytest.mark.parametrize("words", ["$\\frac{1}{0}$", "a_b^c", "批大小", "<&>", "\x1b[0m"])
def test_words_in_a_figure_are_words(words: str) -> None:
    figure = canvas.sheet(100, 50)
    figure.text(0, 0, canvas.words(words))
    svg = canvas.finish(figure, "w", words)
    shown = words.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("\x1b", "\\x1b")
    assert f">{shown}</text>" in svg


def test_ids_carry_the_name_of_their_figure() -> None:
    def make(name: str) -> set[str]:
        figure = canvas.sheet(200, 100)
        axes = canvas.plot(figure)
        axes.plot([1, 2], [1, 2], marker="o")
        axes.bar([1], [1], hatch="//")
        return set(re.findall(r'id="([^"]*)"', str(canvas.finish(figure, name, ""))))

    assert make("one")
    assert not make("one") & make("two")
