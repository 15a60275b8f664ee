"""Laws of sampling: what each filter keeps, which token is drawn, what is reported about it."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from knee.engine.sampling import Sampler, candidates, needs_logits, penalize
from knee.engine.types import SamplingParams
from knee.errors import NumericsError

LAW = settings(deadline=None, max_examples=100)
SETTINGS = st.builds(
    SamplingParams,
    temperature=st.floats(0.2, 3),
    top_k=st.integers(0, 20),
    top_p=st.floats(0.05, 1),
    min_p=st.sampled_from([0.0, 0.01, 0.1, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 0.8, 1.3]),
    seed=st.integers(0, 2**40),
)


@st.composite
def logits_like(draw: st.DrawFn, ties: bool = False) -> NDArray[np.float32]:
    """Logits as a model makes them; with `ties`, many of them equal."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = random.standard_normal(draw(st.integers(1, 60))) * draw(st.sampled_from([0.5, 2.0, 6.0]))
    return (logits.round() if ties else logits).astype(np.float32)


def softmax(scores: NDArray[np.float32] | list[float]) -> NDArray[np.float64]:
    weights = np.exp(np.asarray(scores, dtype=np.float64) - np.max(scores))
    return weights / weights.sum()


def draw_tokens(params: SamplingParams, logits: NDArray[np.float32], count: int) -> list[int]:
    sampler, output = Sampler(params, [0]), []
    for _ in range(count):
        output.append(sampler.choose(logits, output).token_id)
    return output


# --- which tokens may be drawn ------------------------------------------------------------------------


def kept_by_definition(logits: NDArray[np.float32], params: SamplingParams) -> set[int]:
    """The filters one after the other, in the words of their definitions."""
    order = sorted(range(len(logits)), key=lambda id: (-logits[id], id))[: params.top_k or None]
    weights = [math.exp((float(logits[id]) - float(logits[order[0]])) / params.temperature) for id in order]
    size = len(order)
    if params.top_p < 1:
        enough = (n for n in range(1, size + 1) if sum(weights[:n]) >= params.top_p * sum(weights))
        size = next(enough, size)
    return {id for id, weight in zip(order[:size], weights, strict=False) if weight >= params.min_p}


@LAW
@given(logits_like() | logits_like(ties=True), SETTINGS)
def test_the_filters_keep_what_their_definitions_say(logits: NDArray[np.float32], params: SamplingParams) -> None:
    assume(not at_a_boundary(logits, params))
    ids, weights = candidates(logits, params)
    assert set(ids.tolist()) == kept_by_definition(logits, params)
    assert ids.tolist() == sorted(ids.tolist())
    expected = softmax(logits[ids] / params.temperature)
    np.testing.assert_allclose(weights / weights.sum(), expected, rtol=1e-5, atol=1e-12)


def at_a_boundary(logits: NDArray[np.float32], params: SamplingParams) -> bool:
    """Whether rounding decides what is kept."""
    ranked = np.sort(logits)[::-1][: params.top_k or None]
    mass = softmax(ranked / params.temperature).cumsum()
    ratio = np.exp((ranked.astype(np.float64) - ranked[0]) / params.temperature)
    return bool((abs(mass - params.top_p) < 1e-4).any() or (abs(ratio / (params.min_p or 2) - 1) < 1e-4).any())


@pytest.mark.oracle
@LAW
@given(logits=logits_like(), params=SETTINGS, data=st.data())
def test_scores_are_those_of_transformers(
    logits: NDArray[np.float32], params: SamplingParams, data: st.DataObject
) -> None:
    torch = pytest.importorskip("torch")
    oracle = pytest.importorskip("transformers.generation.logits_process")
    assume(len(set(logits.tolist())) == len(logits))
    seen = data.draw(st.lists(st.integers(0, len(logits) - 1), min_size=1, max_size=10))
    scores = penalize(logits, np.array(seen), params.repetition_penalty)
    assume(not at_a_boundary(scores, params))
    warpers = [
        oracle.RepetitionPenaltyLogitsProcessor(params.repetition_penalty),
        oracle.TemperatureLogitsWarper(params.temperature),
        *([oracle.TopKLogitsWarper(params.top_k)] if params.top_k else []),
        oracle.TopPLogitsWarper(params.top_p),
        oracle.MinPLogitsWarper(params.min_p),
    ]
    warped = torch.tensor(logits)[None]
    for warper in warpers:
        warped = warper(torch.tensor([seen]), warped)
    ids, weights = candidates(scores, params)
    ours = np.zeros(len(logits))
    ours[ids] = weights / weights.sum()
    np.testing.assert_allclose(ours, torch.softmax(warped[0].double(), 0).numpy(), rtol=1e-4, atol=1e-9)


@LAW
@given(logits_like(ties=True), st.integers(1, 70))
def test_top_k_keeps_exactly_k_and_of_equals_the_lowest_ids(logits: NDArray[np.float32], top_k: int) -> None:
    ids, _ = candidates(logits, SamplingParams(temperature=1.0, top_k=top_k))
    order = sorted(range(len(logits)), key=lambda id: (-logits[id], id))
    assert ids.tolist() == sorted(order[:top_k])


@LAW
@given(logits_like())
def test_a_nucleus_of_almost_all_is_all_but_what_rounding_hides(logits: NDArray[np.float32]) -> None:
    ids, _ = candidates(logits, SamplingParams(temperature=1.0, top_p=math.nextafter(1.0, 0.0)))
    assert (np.delete(softmax(logits), ids) < 1e-15).all()


def test_min_p_1_keeps_the_best_and_its_equals() -> None:
    ids, _ = candidates(np.array([1.0, 3.0, 2.0, 3.0], np.float32), SamplingParams(temperature=1.0, min_p=1.0))
    assert ids.tolist() == [1, 3]


def test_a_token_seen_often_is_penalized_once() -> None:
    scores = penalize(np.array([2.0, -2.0, 1.0], np.float32), np.array([0, 0, 1, 1]), 2.0)
    assert scores.tolist() == [1.0, -4.0, 1.0]


# --- which token is drawn -----------------------------------------------------------------------------


@LAW
@given(logits_like(), SETTINGS)
def test_only_kept_tokens_are_drawn(logits: NDArray[np.float32], params: SamplingParams) -> None:
    sampler = Sampler(params, [])
    kept = candidates(penalize(logits, np.array([], np.intp), 1.0), params)[0]
    assert all(sampler.choose(logits, []).token_id in kept for _ in range(10))


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    logits, count = np.array([1.0, 0.0, 2.0, -1.0], np.float32), 20_000
    drawn = Counter(draw_tokens(SamplingParams(temperature=0.8, seed=7), logits, count))
    for id, probability in enumerate(softmax(logits / 0.8)):
        five_sigma = 5 * math.sqrt(probability * (1 - probability) / count)
        assert abs(drawn[id] / count - probability) < five_sigma


@LAW
@given(logits_like(), SETTINGS)
def test_the_same_seed_gives_the_same_tokens_whoever_else_draws(
    logits: NDArray[np.float32], params: SamplingParams
) -> None:
    alone = draw_tokens(params, logits, 8)
    one, other = Sampler(params, [0]), Sampler(params, [0])
    output: list[int] = []
    for _ in range(8):
        other.choose(logits[::-1], [])
        output.append(one.choose(logits, output).token_id)
    assert output == alone


def test_other_seeds_give_other_tokens() -> None:
    logits = np.zeros(1000, np.float32)
    texts = {tuple(draw_tokens(SamplingParams(temperature=1.0, seed=seed), logits, 4)) for seed in range(50)}
    assert len(texts) == 50


def test_rounding_noise_does_not_move_a_draw() -> None:
    """Of a thousand nearly equal tokens, noise changes the order by probability but not what is drawn."""
    noise = np.random.default_rng(1).standard_normal(1000) * 1e-6
    params = SamplingParams(temperature=1.0, seed=3)
    quiet = draw_tokens(params, np.zeros(1000, np.float32), 50)
    assert draw_tokens(params, noise.astype(np.float32), 50) == quiet


@LAW
@given(logits_like(ties=True), st.floats(0, 0.99e-5))
def test_a_temperature_near_zero_takes_the_first_of_the_best(logits: NDArray[np.float32], temperature: float) -> None:
    choice = Sampler(SamplingParams(temperature=temperature), []).choose(logits, [])
    assert choice.token_id == logits.tolist().index(max(logits))


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1e-5, 1.0, 1e30])
@pytest.mark.parametrize("penalty", [1e-300, 0.5, 1.0, 1e300])
def test_huge_logits_overflow_nothing(temperature: float, penalty: float) -> None:
    biggest = float(np.finfo(np.float32).max)
    logits = np.array([-biggest, biggest, 0.0, biggest / 2], np.float32)
    params = SamplingParams(temperature=temperature, top_p=0.9, repetition_penalty=penalty, logprobs=2)
    choice = Sampler(params, [0, 3]).choose(logits, [])
    assert 0 <= choice.token_id < 4
    assert choice.logprob is not None
    assert not math.isnan(choice.logprob)


def test_the_repetition_penalty_applies_to_greedy_and_to_prompt_and_output() -> None:
    sampler = Sampler(SamplingParams(repetition_penalty=4.0), prompt_ids=[2])
    logits = np.array([2.0, 3.0, 4.0, 1.5], np.float32)
    assert sampler.choose(logits, []).token_id == 1
    assert sampler.choose(logits, [1]).token_id == 0
    assert sampler.choose(logits, [1, 0]).token_id == 3


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_token_is_chosen_from_a_logit_that_is_not_finite(bad: float, temperature: float) -> None:
    logits = np.array([0.0, 1.0, bad], np.float32)
    with pytest.raises(NumericsError, match="token 2"):
        Sampler(SamplingParams(temperature=temperature), []).choose(logits, [])


# --- what is reported ---------------------------------------------------------------------------------


@LAW
@given(logits_like(ties=True), SETTINGS, st.integers(0, 70))
def test_logprobs_are_the_models_own_best_first(
    logits: NDArray[np.float32], params: SamplingParams, count: int
) -> None:
    asked = SamplingParams(temperature=params.temperature, repetition_penalty=1.3, logprobs=count)
    choice = Sampler(asked, [0]).choose(logits, [])
    logprobs = np.log(softmax(logits))
    order = sorted(range(len(logits)), key=lambda id: (-logits[id], id))[:count]
    assert [candidate.token_id for candidate in choice.top] == order
    np.testing.assert_allclose([candidate.logprob for candidate in choice.top], logprobs[order], rtol=1e-9, atol=1e-12)
    assert choice.logprob == pytest.approx(logprobs[choice.token_id])


def test_logprobs_are_left_out_unless_asked_for() -> None:
    choice = Sampler(SamplingParams(temperature=1.0), []).choose(np.zeros(3, np.float32), [])
    assert (choice.logprob, choice.top) == (None, ())


def test_the_logits_are_left_as_they_are() -> None:
    logits = np.arange(10, dtype=np.float32)
    params = SamplingParams(temperature=0.7, repetition_penalty=1.2, logprobs=3)
    Sampler(params, [1, 2]).choose(logits, [3])
    assert logits.tolist() == list(range(10))


@pytest.mark.parametrize(
    ("params", "needed"),
    [
        (SamplingParams(), False),
        (SamplingParams(temperature=1e-9, top_k=5, top_p=0.5), False),
        (SamplingParams(temperature=0.5), True),
        (SamplingParams(repetition_penalty=1.1), True),
        (SamplingParams(logprobs=0), True),
    ],
)
def test_logits_leave_the_device_only_where_argmax_does_not_say_it_all(params: SamplingParams, needed: bool) -> None:
    assert needs_logits(params) is needed
