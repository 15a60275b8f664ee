"""Cold and warm are two numbers; the decode loop is the sum of its steps; what is not there is null."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from knee.devices.base import Span
from knee.engine.types import SamplingParams
from knee.errors import KneeError, UserError
from knee.lab.baseline import BaselineSpec, run
from knee.lab.workload import Prompt, Workload
from tests.fake_device import next_token
from tests.lab.fake_llm import FakeTime, Rows, make_llm

PROMPT = Prompt(tuple(range(13)))


def spec(tokens: int = 10, **more: object) -> BaselineSpec:
    return BaselineSpec(Workload((PROMPT,), 1, tokens), **more)  # type: ignore[arg-type]


def measure(given: BaselineSpec, cold_s: float = 0.4, eos: int | None = None):
    time, steps = FakeTime(), []

    def cost(batch: Sequence[Span]) -> None:
        time.now += 0.0 if steps else cold_s
        steps.append(batch)
        time.per_row(batch)

    rows = Rows()
    return run(make_llm(cost, eos=eos), given, rows, time.clock), rows


def test_the_first_forward_pass_is_apart_from_the_warm_ones():
    outcome, _ = measure(spec())
    assert outcome.metrics.prefill_cold_ms == pytest.approx(423.0)
    assert outcome.metrics.prefill_ms == pytest.approx(23.0)
    assert outcome.metrics.prefill_runs_ms == pytest.approx([23.0] * 5)
    assert outcome.metrics.prefill_ms_per_token == pytest.approx(23.0 / 13)
    assert any("18.4 times" in note for note in outcome.notes)


def test_a_start_that_was_not_cold_is_not_called_so():
    outcome, _ = measure(spec(), cold_s=0.0)
    assert not any("cold start" in note for note in outcome.notes)


def test_numbers_add_up_as_in_the_log():
    m = measure(spec())[0].metrics
    assert m.decode_steps == 9
    assert m.decode_step_ms == pytest.approx([11.0] * 9)
    assert m.decode_loop_ms == pytest.approx(99.0)
    assert m.decode_ms_per_step == pytest.approx(11.0)
    assert m.total_generate_ms == pytest.approx(m.prefill_ms + m.decode_loop_ms)
    assert m.output_tokens_per_s == pytest.approx(10 / 0.122)
    assert m.kv_cache_shape == [1, 2, 13 + 9, 8]
    assert (m.load_model_ms, m.load_tokenizer_ms, m.tokenize_ms) == (120.0, 7.0, None)
    assert m.text is None


def test_the_reported_run_is_the_one_row_that_is_kept():
    outcome, rows = measure(spec())
    [row] = rows.requests
    assert row.output_tokens == 10
    assert len(rows.steps) == 10
    assert outcome.metrics.token_ids[0] == next_token(PROMPT.ids)


def test_one_token_has_no_decode_step():
    m = measure(spec(tokens=1))[0].metrics
    assert (m.decode_steps, m.decode_loop_ms, m.decode_ms_per_step) == (0, 0.0, None)
    assert m.kv_cache_shape == [1, 2, 13, 8]


def test_the_end_of_a_text_ends_the_loop_unless_ignored():
    first = next_token(PROMPT.ids)
    assert measure(spec(), eos=first)[0].metrics.output_tokens == 1
    ignored = spec(params=SamplingParams(ignore_eos=True))
    assert measure(ignored, eos=first)[0].metrics.output_tokens == 10


def test_without_a_cache_every_step_runs_the_whole_prefix():
    m = measure(spec(kv_cache=False))[0].metrics
    assert m.decode_step_ms == pytest.approx([24.0 + n for n in range(9)])
    assert m.kv_cache_shape is None


def test_a_long_prompt_that_is_split_is_one_prefill():
    long = BaselineSpec(Workload((Prompt((1,) * 1000),), 1, 2))
    assert measure(long)[0].metrics.prefill_ms == pytest.approx(1000 + 2 * 10.0)


def test_fewer_than_five_warm_prefills_are_refused():
    with pytest.raises(UserError, match="at least 5"):
        spec(warm_prefills=4)


def test_a_device_that_fails_is_an_error_and_leaves_its_row():
    rows = Rows()
    with pytest.raises(KneeError, match="NaN"):
        run(make_llm(fail_at=9), spec(), rows)
    assert [row.finish_reason for row in rows.requests] == ["error"]
