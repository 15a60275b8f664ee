"""Taken apart by hand, a request takes the same steps and gives the same tokens as in the engine."""

from __future__ import annotations

import math

import pytest

from knee.errors import OutOfMemory
from knee.lab import inspect
from knee.lab.inspect import InspectSpec, check, run
from knee.lab.records import InspectMetrics
from knee.lab.workload import Prompt, Workload
from tests.fake_device import FakeDevice, next_token
from tests.lab.fake_llm import FakeTime, Rows, make_llm

PROMPT = tuple(range(13))


def spec(tokens: int = 10, **more: int) -> InspectSpec:
    return InspectSpec(Workload((Prompt(PROMPT),), 1, tokens), **more)


def measure(given: InspectSpec) -> InspectMetrics:
    time = FakeTime()
    found = run(make_llm(time.per_row), given, Rows(), time.clock).metrics
    assert isinstance(found, InspectMetrics)
    return found


@pytest.mark.parametrize("block_size", [1, 4, 16, 64])
def test_the_steps_are_those_of_the_log(block_size: int):
    m = measure(spec(block_size=block_size))
    assert m.prefill.logits_shape == [1, 13, 50]
    assert (m.prefill.kv_layers, m.prefill.kv_shape) == (2, [1, 2, 13, 8])
    assert [step.step for step in m.steps] == list(range(1, 10))
    assert [step.kv_len for step in m.steps] == list(range(14, 23))
    assert m.prefill.ms == pytest.approx(23.0)
    assert [step.ms for step in m.steps] == pytest.approx([11.0] * 9)
    assert m.matches_generate


def test_tokens_are_those_of_the_model():
    context = list(PROMPT)
    for _ in range(10):
        context.append(next_token(context))
    assert [step.token_id for step in measure(spec()).steps] == context[14:]


def test_without_the_cache_a_step_runs_the_whole_prefix_and_chooses_the_same():
    off = measure(spec()).kv_cache_off
    assert off.same_tokens
    assert (off.prefill.kv_layers, off.prefill.kv_shape) == (0, None)
    assert [step.kv_len for step in off.steps] == [0] * 9
    assert [step.ms for step in off.steps] == pytest.approx([24.0 + n for n in range(9)])


def test_candidates_are_five_probabilities_in_falling_order():
    for step in measure(spec()).steps:
        logprobs = [candidate.logprob for candidate in step.top]
        assert len(logprobs) == 5
        assert logprobs == sorted(logprobs, reverse=True)
        assert sum(map(math.exp, logprobs)) < 1
        assert step.top[0].token_id == step.token_id


def test_one_token_is_a_prefill_without_steps():
    m = measure(spec(tokens=1))
    assert m.steps == []
    assert m.matches_generate


def test_the_first_token_is_in_the_notes():
    outcome = run(make_llm(), spec(), Rows())
    assert str(next_token(PROMPT)) in outcome.notes[0]


class Forgetful(FakeDevice):
    """Says something else when it is asked for logits."""

    def _logits(self, context):
        return super()._logits([*context, 0])


def test_a_hand_written_loop_that_differs_is_reported():
    llm = make_llm()
    wrong = type(llm)(llm.checkpoint, llm.program, Forgetful(llm.program), None, llm.load_times)
    outcome = run(wrong, spec(), Rows())
    assert not outcome.metrics.matches_generate
    assert [warning.code for warning in outcome.warnings] == ["generate_differs"]


def test_logits_that_do_not_fit_are_refused_before_work(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inspect, "available_memory", lambda: 1000)
    llm = make_llm(fail_at=0)
    with pytest.raises(OutOfMemory, match="13 positions"):
        check(llm, spec())
    assert llm.device.steps == 0
