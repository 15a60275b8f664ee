"""A recommendation names a setting, its ties and its price, or says that it cannot tell and why."""

from __future__ import annotations

import pytest

from knee.lab.judgement.commands import commands
from knee.lab.messages import translated
from knee.lab.sweep_records import Recommendation
from tests.lab.judgement.sweeps import Latency, judged, make, setting, steady
from tests.lab.samples import record

ONE, FOUR, EIGHT = setting(size=1), setting(size=4), setting(size=8)


def spread(fast: float, slow: float, share: int) -> Latency:
    """Of eight requests `share` are fast."""
    return lambda repeat, request: (fast if request < share else slow) * (1 + 0.004 * repeat)


def answers(found: object) -> dict[str, Recommendation]:
    recommendations = found.recommendations  # type: ignore[attr-defined]
    given = {name: getattr(recommendations, name) for name in ("chat", "api", "offline", "slo")}
    return {name: one for name, one in given.items() if one is not None}


def test_the_setting_with_the_most_requests_within_the_limits_is_recommended():
    _, metrics = judged([(ONE, spread(0.05, 1.0, 2)), (FOUR, spread(0.05, 0.5, 8)), (EIGHT, spread(0.05, 0.6, 4))])
    api = answers(metrics)["api"]
    assert (api.verdict, api.label, api.tied) == ("clear", "continuous (4)", [])
    assert api.within == 1.0
    assert api.limits == {"e2el": pytest.approx(200.0)}
    assert api.against is not None
    assert api.against.label == "continuous (1)"
    assert api.against.effects["e2el_ms"].verdict == "better"
    assert "latency from arrival -" in api.sentence


def test_limits_nobody_gave_are_multiples_of_one_request_alone():
    _, metrics = judged([(ONE, steady(0.05)), (FOUR, steady(0.06))])
    chat = answers(metrics)["chat"]
    assert chat.limits == {"ttft": pytest.approx(60.0), "tpot": pytest.approx(20.0)}
    assert "20.0 ms and 10.0 ms" in (chat.limits_how or "")


def test_settings_that_cannot_be_told_apart_are_tied_and_the_simplest_is_named():
    _, metrics = judged([(EIGHT, steady(0.1, 0.02)), (FOUR, steady(0.1, -0.02)), (ONE, steady(0.3))])
    offline = answers(metrics)["offline"]
    assert (offline.verdict, offline.label, offline.tied) == ("tied", "continuous (4)", [0])
    assert "continuous (8)" in offline.sentence


def test_a_difference_too_small_to_matter_is_a_tie():
    _, metrics = judged([(ONE, steady(0.100, 0.0)), (FOUR, steady(0.0985, 0.0))])
    assert answers(metrics)["offline"].verdict == "tied"


def test_requests_that_tie_are_told_apart_by_latency():
    _, metrics = judged([(ONE, steady(0.15)), (FOUR, steady(0.06))])
    assert answers(metrics)["api"].label == "continuous (4)"


def test_where_no_request_keeps_the_limits_the_answer_is_that_one_cannot_tell():
    _, metrics = judged([(ONE, steady(9.0)), (FOUR, steady(8.0))])
    chat = answers(metrics)["chat"]
    assert (chat.verdict, chat.cell, chat.commands) == ("cannot_tell", None, {})
    assert "the lowest mean latency was that of continuous (4)" in chat.sentence
    assert "--arrival poisson:0.5" in chat.sentence  # 8 requests in 8 s are 1/s


def test_where_requests_come_by_a_clock_it_is_the_rate_that_is_to_blame():
    arrivals = {"arrival": "poisson:5", "times": [0.1 * n for n in range(8)]}
    _, metrics = judged([(ONE, steady(9.0)), (FOUR, steady(8.0))], workload=arrivals)
    assert "a lower rate of arrival" in answers(metrics)["chat"].sentence


def test_two_repeats_tell_nothing_apart():
    _, metrics = judged([(ONE, steady(0.3)), (FOUR, steady(0.1))], repeats=2)
    assert answers(metrics)["offline"].verdict == "cannot_tell"
    assert "2 repeats" in answers(metrics)["offline"].sentence


def test_where_arrivals_decide_the_throughput_nothing_is_recommended_for_offline_work():
    arrivals = {"arrival": "poisson:5", "times": [0.1 * n for n in range(8)]}
    _, metrics = judged([(ONE, steady(0.1)), (FOUR, steady(0.1))], workload=arrivals)
    offline = answers(metrics)["offline"]
    assert offline.verdict == "cannot_tell"
    assert "--arrival burst" in offline.sentence


def test_limits_of_the_user_s_own_have_an_answer_of_their_own():
    _, metrics = judged([(ONE, spread(0.05, 1.0, 2)), (FOUR, spread(0.4, 0.5, 8))], slo={"e2el": 100.0})
    own = answers(metrics)["slo"]
    assert (own.label, own.limits, own.within) == ("continuous (1)", {"e2el": 100.0}, 0.25)
    assert own.value is not None
    assert own.value.low is not None
    assert own.value.low >= 0


def test_every_sentence_is_there_in_chinese():
    for made in (
        make([(ONE, steady(0.05)), (FOUR, steady(0.06))]),
        make([(ONE, steady(9.0)), (FOUR, steady(8.0))]),
        make([(EIGHT, steady(0.1)), (FOUR, steady(0.1))], slo={"ttft": 100.0}),
        make([(ONE, steady(0.1)), (FOUR, steady(0.2))], repeats=2),
        make([(ONE, steady(0.1))]),
    ):
        _, metrics = judged(*made)
        assert metrics.knee is not None
        sentences = [metrics.knee.sentence]
        for one in answers(metrics).values():
            sentences += [one.sentence, *([one.limits_how] if one.limits_how else [])]
        for sentence in sentences:
            assert translated("zh", sentence) != sentence


def test_a_tie_is_said_in_chinese_from_end_to_end():
    _, metrics = judged([(EIGHT, steady(0.1, 0.02)), (FOUR, steady(0.1, -0.02)), (ONE, steady(0.3))])
    said = translated("zh", answers(metrics)["offline"].sentence)
    assert said.startswith("continuous (4)，是与最佳设置无法区分")
    assert "（并列：continuous (8)）：" in said
    assert "simplest" not in said


# --- the knee ----------------------------------------------------------------------------------------------------


def test_the_knee_is_where_requests_over_latency_are_most():
    _, metrics = judged([(ONE, steady(0.4)), (FOUR, steady(0.1)), (EIGHT, steady(0.2))])
    assert metrics.knee is not None
    assert (metrics.knee.label, metrics.knee.tied, metrics.knee.found_batches) == ("continuous (4)", [], [4])
    assert metrics.knee.power.value == pytest.approx(8 / 0.1 / 0.1, rel=0.05)


def test_cells_that_cannot_be_told_from_the_knee_are_named():
    _, metrics = judged([(ONE, steady(0.4)), (FOUR, steady(0.1, 0.05)), (EIGHT, steady(0.1, -0.05))])
    assert metrics.knee is not None
    assert {metrics.knee.cell, *metrics.knee.tied} == {1, 2}
    assert "cannot be told from" in metrics.knee.sentence


def test_one_cell_has_no_knee_beside_it():
    _, metrics = judged([(ONE, steady(0.4))])
    assert metrics.knee is not None
    assert metrics.knee.sentence.startswith("Only one setting was measured")


# --- what to paste -----------------------------------------------------------------------------------------------


def test_each_system_gets_the_setting_that_corresponds():
    given = record("sweep", done=False, options={"model": "my models/x.gguf"})
    continuous, dynamic, static = (
        commands(given, *one) for one in (("continuous", 8, None), ("dynamic", 8, 10.0), ("static", 4, None))
    )
    assert set(continuous) == {"knee", "vLLM", "llama.cpp server"}
    assert continuous["vLLM"].endswith("--max-num-seqs 8")
    assert "--parallel 8 --ctx-size 2048" in continuous["llama.cpp server"]
    assert set(dynamic) == {"knee", "Triton Inference Server"}
    assert "max_queue_delay_microseconds: 10000" in dynamic["Triton Inference Server"]
    assert "max_batch_size: 8" in dynamic["Triton Inference Server"]
    assert set(static) == {"knee"}
    assert "--model 'my models/x.gguf' --policies static --batch-sizes 4" in static["knee"]


def test_the_command_for_knee_measures_the_same_work():
    asked = {
        "model": "m",
        "requests": 40,
        "max_new_tokens": 8,
        "prompt": ["a b", "c"],
        "kv_cache": "on",
        "slo": "ttft:5",
    }
    given = record("sweep", done=False, options=asked | {"arrival": "poisson:5", "device": "auto"})
    assert commands(given, "dynamic", 8, 10.0)["knee"] == (
        "knee sweep --model m --policies dynamic --batch-sizes 8 --wait-ms 10 --arrival poisson:5 --requests 40 "
        "--max-new-tokens 8 --prompt 'a b' --prompt c --slo ttft:5"
    )
