"""How the next token is chosen from the logits of one request.

In this order: repetition penalty, temperature, top-k, top-p, min-p, and one uniform draw by inverse CDF. Each
request draws from its own generator, once a token: its text depends on its seed and its logits, not on who else is
in the batch, nor on a preemption. The CDF runs over token ids, not over probabilities in order: a rounding
difference in the logits then moves its edges by as little, where two nearly equal tokens would change places.

Arithmetic is float64. Knows NumPy and one request at a time; no device, no batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from knee.engine.types import Candidate, SamplingParams
from knee.errors import NumericsError

Floats = NDArray[np.float32] | NDArray[np.float64]
Mask = NDArray[np.bool_]
Ids = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Choice:
    """The next token; with `SamplingParams.logprobs`, its log probability and the most likely tokens, best first.

    Log probabilities are natural logs and the model's own: before penalty, temperature and filters.
    """

    token_id: int
    logprob: float | None = None
    top: tuple[Candidate, ...] = ()


def needs_logits(params: SamplingParams) -> bool:
    """Whether the logits have to leave the device; if not, its argmax says it all."""
    return not params.greedy or params.repetition_penalty != 1 or params.logprobs is not None


def draws_plainly(params: SamplingParams) -> bool:
    """Whether a token is drawn from all tokens by their probability at a temperature, and nothing else is asked for."""
    filtered = params.top_k or params.top_p < 1 or params.min_p > 0
    return not params.greedy and not filtered and params.repetition_penalty == 1 and params.logprobs is None


class Sampler:
    """Chooses the tokens of one request, one after the other."""

    def __init__(self, params: SamplingParams, prompt_ids: Sequence[int]) -> None:
        self._params = params
        self._prompt = np.asarray(prompt_ids, dtype=np.intp)
        self._random = np.random.Generator(np.random.PCG64(params.seed))

    def uniform(self) -> float:
        """The number in [0, 1) that decides the next token, for who chooses elsewhere."""
        return float(self._random.random())

    def choose(self, logits: NDArray[np.float32], output: Sequence[int]) -> Choice:
        """The token after prompt and `output`; `logits` has shape (vocab,) and is left as it is.

        Raises `NumericsError` if any logit is NaN or infinite.
        """
        _require_finite(logits)
        scores: Floats = logits
        if self._params.repetition_penalty != 1:
            seen = np.concatenate([self._prompt, np.asarray(output, dtype=np.intp)])
            scores = penalize(logits, seen, self._params.repetition_penalty)
        token_id = int(scores.argmax()) if self._params.greedy else self._draw(scores)
        if self._params.logprobs is None:
            return Choice(token_id)
        normalizer = _log_sum_exp(logits)
        ranked = (int(id) for id in _ranked(logits, self._params.logprobs))
        top = tuple(Candidate(id, float(logits[id]) - normalizer) for id in ranked)
        return Choice(token_id, float(logits[token_id]) - normalizer, top)

    def _draw(self, scores: Floats) -> int:
        ids, weights = candidates(scores, self._params)
        cumulative = np.cumsum(weights, out=weights)
        return int(ids[np.searchsorted(cumulative, self.uniform() * cumulative[-1], side="right")])


def penalize(logits: Floats, seen: NDArray[np.intp], penalty: float) -> NDArray[np.float64]:
    """Scores in which every token of `seen` is less likely, however often it was seen (CTRL, Keskar et al. 2019)."""
    scores = logits.astype(np.float64)
    old = scores[seen]
    with np.errstate(over="ignore"):
        new = np.where(old > 0, old / penalty, old * penalty)
    scores[seen] = np.clip(new, -1e300, 1e300)  # so that the difference of two is finite
    return scores


def candidates(scores: Floats, params: SamplingParams) -> tuple[Ids, NDArray[np.float64]]:
    """The tokens that may be drawn, in order of id, and their probabilities up to a common factor.

    Temperature must be above 0. Of equally likely tokens, the filters prefer the lower id.
    """
    ids = _largest(scores, params.top_k or len(scores))
    if len(ids) < len(scores):
        scores = scores[ids]
    # The best has weight 1: with the maximum gone first, no temperature is too small. In place, because
    # fresh pages for another vocabulary of float64 cost more than the arithmetic.
    weights = np.subtract(scores, scores.max(), dtype=np.float64)
    weights /= params.temperature
    np.exp(weights, out=weights)
    if params.top_p < 1:
        keep = _nucleus(weights, params.top_p)
        ids, weights = ids[keep], weights[keep]
    if params.min_p > 0:
        keep = weights >= params.min_p
        ids, weights = ids[keep], weights[keep]
    return ids, weights


def _nucleus(weights: NDArray[np.float64], top_p: float) -> Mask:
    """The fewest tokens that together have probability `top_p` (Holtzman et al. 2020)."""
    total = weights.sum()
    # All tokens below this weight together have less than 1 - top_p: sorting them would be in vain.
    floor = (1 - top_p) * total / len(weights)
    ranked = np.sort(weights[weights >= floor])[::-1]
    enough = int(np.searchsorted(ranked.cumsum(), top_p * total))
    last = min(enough, len(ranked) - 1)
    return _fill(weights > ranked[last], weights == ranked[last], last + 1)


def _largest(values: Floats, count: int) -> Ids:
    """Indices of the `count` largest values, in order; all if there are no more."""
    surplus = len(values) - count
    if surplus <= 0:
        return np.arange(len(values), dtype=np.int32)
    best_left_out = np.partition(values, surplus - 1)[surplus - 1]
    keep = _fill(values > best_left_out, values == best_left_out, count)
    return np.flatnonzero(keep).astype(np.int32)


def _fill(taken: Mask, ties: Mask, count: int) -> Mask:
    """Add the first of the ties to those taken, so that they are `count`."""
    taken[np.flatnonzero(ties)[: count - np.count_nonzero(taken)]] = True
    return taken


def _ranked(values: Floats, count: int) -> Ids:
    """Indices of the `count` largest values, largest first; of equal ones the first."""
    ids = _largest(values, count)
    return ids[np.argsort(-values[ids], kind="stable")]


def _log_sum_exp(values: Floats) -> float:
    best = values.max()
    shifted = np.subtract(values, best, dtype=np.float64)
    return float(best + np.log(np.exp(shifted, out=shifted).sum()))


def _require_finite(logits: Floats) -> None:
    finite = np.isfinite(logits)
    if not finite.all():
        token_id = int(finite.argmin())
        raise NumericsError(f"the logit of token {token_id} is {logits[token_id]}: no token can be chosen from it")
