"""Agreement is counted right, the text is cut up without a gap, and a missed limit is said."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from benchmarks import quality
from benchmarks.quality import Agreement, Limit, chunks, compare, log_probabilities, make_table, measure, to_json

from knee.devices import Want
from knee.devices.base import FloatArray
from knee.llm import DEFAULT_BLOCK_SIZE
from tests.fake_device import FakeDevice, tiny_program


def logs(*rows: Sequence[float]) -> FloatArray:
    return log_probabilities(np.log(np.array(rows, np.float32)))


TRUTH = logs([0.5, 0.25, 0.25], [0.2, 0.2, 0.6])
OTHER = logs([0.25, 0.5, 0.25], [0.1, 0.1, 0.8])


def test_log_probabilities_sum_to_one_whatever_is_added_to_the_logits() -> None:
    logits = np.random.default_rng(0).normal(0, 10, (5, 40)).astype(np.float32)
    assert np.exp(log_probabilities(logits)).sum(axis=-1) == pytest.approx(1.0)
    assert log_probabilities(logits + 300) == pytest.approx(log_probabilities(logits), abs=1e-4)


def test_choices_surprise_and_divergence_are_those_computed_by_hand() -> None:
    got = compare(TRUTH, OTHER, [0, 2])
    assert (got.positions, got.equal, got.share) == (2, 1, 0.5)
    assert got.perplexity == pytest.approx((0.25 * 0.8) ** -0.5)
    assert got.change == pytest.approx((0.25 * 0.8 / (0.5 * 0.6)) ** -0.5 - 1)
    by_hand = 0.5 * np.log(2) + 0.25 * np.log(0.5) + 0.4 * np.log(2) + 0.6 * np.log(0.75)
    assert got.mean_divergence == pytest.approx(by_hand / 2)


def test_a_device_agrees_with_itself() -> None:
    got = compare(TRUTH, TRUTH, [1, 1])
    assert (got.share, got.change, got.mean_divergence) == (1.0, 0.0, 0.0)


def test_parts_add_up_to_the_whole() -> None:
    parts = compare(TRUTH[:1], OTHER[:1], [0]) + compare(TRUTH[1:], OTHER[1:], [2])
    assert to_json({"x": parts}) == [pytest.approx(row) for row in to_json({"x": compare(TRUTH, OTHER, [0, 2])})]


@pytest.mark.parametrize("count", [2, 128, 129, 512, 513, 514, 700, 1025, 2428])
def test_every_position_with_a_successor_is_asked_once_in_its_window(count: int) -> None:
    tokens = list(range(count))
    cached = 0
    asked: list[int] = []
    for span, targets in chunks(tokens):
        assert span.start in (0, cached)  # each chunk goes on where the last one ended, or a window begins
        cached = span.start + len(span.tokens)
        assert cached <= quality.WINDOW
        assert cached <= len(span.block_table) * DEFAULT_BLOCK_SIZE
        assert len(span.tokens) <= quality.CHUNK
        assert span.want is Want.ALL_LOGITS
        assert list(targets) == [token + 1 for token in span.tokens]
        asked += span.tokens
    assert asked == tokens[:-1]


@pytest.mark.parametrize(
    ("equal", "surprise", "kept"),
    [(99, 100.0, True), (98, 100.0, False), (99, 100.9, True), (99, 101.1, False), (99, 98.9, False)],
)
def test_a_limit_is_kept_or_missed(equal: int, surprise: float, kept: bool) -> None:
    found = Agreement(positions=100, equal=equal, float32_surprise=100.0, surprise=surprise)
    assert found.keeps(Limit(0.99, 0.01)) is kept
    assert found.keeps(None)


def test_the_table_names_what_was_missed() -> None:
    good = Agreement(positions=100, equal=99, float32_surprise=300.0, surprise=300.0)
    bad = Agreement(positions=100, equal=90, float32_surprise=300.0, surprise=300.0)
    table = make_table("t", {"bfloat16": bad, "int8": good, "int4": bad})
    assert list(table.columns[-1].cells) == ["", "kept", "MISSED"]
    assert list(table.columns[1].cells) == ["90.00%", "99.00%", "90.00%"]


def test_devices_go_through_the_text_side_by_side() -> None:
    program = tiny_program(positions=quality.WINDOW)
    same, other = FakeDevice(program), FakeDevice(tiny_program(positions=quality.WINDOW))
    found = measure(FakeDevice(program), {"same": same, "other": other}, [i % 50 for i in range(600)])
    assert same.steps == other.steps == 5
    assert [one.positions for one in found.values()] == [599, 599]
    assert [one.share for one in found.values()] == [1.0, 1.0]


@pytest.mark.model
@pytest.mark.usefixtures("smollm2_path")
def test_the_text_has_two_thousand_positions() -> None:
    from knee.weights.load import open_checkpoint
    from knee.weights.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(open_checkpoint("smollm2-135m"))
    assert tokenizer
    assert len(tokenizer.encode(quality.TEXT.read_text("utf-8"))) > 2000
