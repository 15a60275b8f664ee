"""The KV cache pays from the context where its steps become faster and stay so; noise does not decide."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.devices.base import Span
from knee.errors import KneeError, UserError
from knee.lab.kv_steps import StepPair, pays_from
from knee.lab.kvcache import KvCacheSpec, run
from knee.lab.records import KvCacheMetrics
from knee.lab.workload import Prompt
from tests.fake_device import next_token
from tests.lab.fake_llm import FakeTime, Rows, make_llm

PROMPT = Prompt((1, 2, 3))


def measure(given: KvCacheSpec, cost=None) -> tuple[KvCacheMetrics, Rows]:
    time, rows = FakeTime(), Rows()
    llm = make_llm(lambda batch: cost(time, batch) if cost else time.per_row(batch))
    found = run(llm, given, rows, time.clock).metrics
    assert isinstance(found, KvCacheMetrics)
    return found, rows


def test_every_length_is_measured_on_and_off():
    m, rows = measure(KvCacheSpec(PROMPT, (10, 50), 5))
    assert [(c.prompt_length, c.kv_cache) for c in m.cells] == [(10, "on"), (10, "off"), (50, "on"), (50, "off")]
    assert [row.cell for row in rows.requests] == [0, 1, 2, 3]
    assert [row.prompt_tokens for row in rows.requests] == [10, 10, 50, 50]
    assert m.same_tokens


def test_with_the_cache_a_token_costs_the_same_without_it_more_and_more():
    m, _ = measure(KvCacheSpec(PROMPT, (10,), 5))
    on, off = m.cells
    assert on.token_ms == pytest.approx([20.0, 11.0, 11.0, 11.0, 11.0])
    assert off.token_ms == pytest.approx([20.0, 21.0, 22.0, 23.0, 24.0])
    assert on.prefill_ms == on.token_ms[0]
    assert on.decode_ms_per_step == pytest.approx(11.0)
    assert on.total_ms == pytest.approx(sum(on.token_ms))


def test_memory_is_what_the_finished_request_takes():
    m, _ = measure(KvCacheSpec(PROMPT, (10,), 5))
    assert [cell.kv_bytes for cell in m.cells] == [14 * 256, 0]
    assert m.kv_bytes_per_token == 256


def test_a_long_prompt_is_one_prefill_on_as_off():
    m, _ = measure(KvCacheSpec(PROMPT, (1000,), 2))
    assert m.cells[0].prefill_ms == m.cells[1].prefill_ms == pytest.approx(1010.0)


def test_one_token_has_no_decode_step_and_no_answer():
    m, _ = measure(KvCacheSpec(PROMPT, (10,), 1))
    assert [cell.decode_ms_per_step for cell in m.cells] == [None, None]
    assert m.pays_from_tokens is None


def test_the_end_of_a_text_does_not_make_lengths_unequal():
    first = next_token((1, 2, 3, 1))
    m = run(make_llm(eos=first), KvCacheSpec(PROMPT, (4, 7), 6), Rows()).metrics
    assert {len(cell.token_ms) for cell in m.cells} == {6}


def test_where_rows_up_to_sixty_ride_for_free_the_cache_pays_above_sixty():
    def cost(time: FakeTime, batch: Sequence[Span]) -> None:
        time.now += 0.010 + 0.001 * max(0, len(batch[0].tokens) - 60)

    m, _ = measure(KvCacheSpec(PROMPT, (10, 50, 200), 50), cost)
    assert m.pays_from_tokens == pytest.approx(61, abs=4)


def test_where_a_cached_step_is_slower_it_never_pays():
    def cost(time: FakeTime, batch: Sequence[Span]) -> None:
        time.now += 0.020 if batch[0].block_table else 0.010

    m, rows = measure(KvCacheSpec(PROMPT, (10, 50), 20), cost)
    assert m.pays_from_tokens is None
    assert len(rows.requests) == 4


@given(
    start=st.integers(1, 300),
    count=st.integers(20, 120),
    slow=st.sets(st.integers(0, 119), max_size=2),  # at an end, the median goes over five
)
def test_a_few_slow_steps_do_not_decide(start, count, slow):
    pairs = [StepPair(start + n, on_ms=500.0 if n in slow else 10.0, off_ms=12.0 + n / 10) for n in range(count)]
    assert pays_from(pairs) == start


def test_no_steps_give_no_answer():
    assert pays_from([]) is None


def test_other_tokens_without_the_cache_are_reported():
    llm = make_llm()
    execute = llm.device.execute

    def forgetful(batch: Sequence[Span]):
        [span] = batch
        return execute([span if span.block_table else Span(span.tokens[-2:], 0, (), span.want)])

    llm.device.execute = forgetful  # type: ignore[method-assign]
    outcome = run(llm, KvCacheSpec(PROMPT, (10,), 5), Rows())
    assert not outcome.metrics.same_tokens
    assert [warning.code for warning in outcome.warnings] == ["kv_cache_tokens_differ"]


def test_sentences_follow_from_the_numbers():
    time = FakeTime()
    notes = run(make_llm(time.per_row), KvCacheSpec(PROMPT, (10, 50), 5), Rows(), time.clock).notes
    assert notes == [
        "A decode step is faster with the KV cache from a context of 11 tokens on.",
        "A prompt of 50 tokens takes 104.0 ms in all with the cache and 310.0 ms without: 2.98 times.",
        "The price is memory: 0.2 KiB a token, 0.01 MiB for the request with 50 prompt tokens.",
    ]


@pytest.mark.parametrize(
    ("lengths", "message"), [((), "no prompt lengths"), ((10, 0), "at least 1"), ((10, 10), "twice")]
)
def test_bad_lengths_are_refused(lengths, message):
    with pytest.raises(UserError, match=message):
        KvCacheSpec(PROMPT, lengths)


def test_a_device_that_fails_is_an_error_and_leaves_its_row():
    rows = Rows()
    with pytest.raises(KneeError, match="NaN"):
        run(make_llm(fail_at=4), KvCacheSpec(PROMPT, (10,), 5), rows)
    assert [row.finish_reason for row in rows.requests] == ["error"]
