"""Prefill and decode taken apart by hand: the device is called span by span, without an engine in between.

What an engine does for many requests is here a loop of ten lines for one: run the prompt, take the likeliest token,
run that token, and so on. Then the same without a KV cache: the whole prefix, every time. Both must give the tokens
that the engine gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from knee.devices.base import FloatArray, Span, Want
from knee.engine.engine import Engine
from knee.engine.policies import make_policy
from knee.engine.types import SamplingParams
from knee.errors import KneeError, OutOfMemory
from knee.lab.experiment import Outcome, Sink, check_requests, warning
from knee.lab.judgement.doubts import fell_back
from knee.lab.messages import text
from knee.lab.records import InspectKvOff, InspectMetrics, InspectPrefill, InspectStep, TopCandidate
from knee.lab.rows import request_rows, step_rows
from knee.lab.trial import REAL_TIME, Clock, Trial, run_trial
from knee.lab.workload import Workload
from knee.llm import DEFAULT_BLOCK_SIZE, LLM
from knee.weights.load import available_memory

TOP = 5


@dataclass(frozen=True, slots=True)
class InspectSpec:
    """What to take apart: a workload of one request, greedy."""

    workload: Workload
    ignore_eos: bool = False
    block_size: int = DEFAULT_BLOCK_SIZE

    def __post_init__(self) -> None:
        _ = self.params  # refuses what no request may ask for

    @property
    def params(self) -> SamplingParams:
        """Greedy."""
        return SamplingParams(max_new_tokens=self.workload.max_new_tokens, ignore_eos=self.ignore_eos)


@dataclass(frozen=True, slots=True)
class _ByHand:
    """What the hand-written loop saw."""

    prefill: InspectPrefill
    steps: list[InspectStep]

    @property
    def tokens(self) -> list[int]:
        return [self.prefill.token_id, *(step.token_id for step in self.steps)]


def check(llm: LLM, spec: InspectSpec) -> None:
    """Raise `RequestError` or `OutOfMemory` for a request that cannot be taken apart, before anything runs."""
    check_requests(_engine(llm, spec), spec.workload, spec.params)
    rows = spec.workload.prompt_tokens[0]
    needed = 2 * 4 * rows * llm.program.vocab_size  # the device's buffer and what it hands out
    if needed > (there := available_memory()):
        raise OutOfMemory(
            f"the logits of {rows} positions need {needed / 2**30:.2f} GiB and {there / 2**30:.2f} GiB are free: "
            "inspect a shorter prompt"
        )


def run(llm: LLM, spec: InspectSpec, sink: Sink, clock: Clock = REAL_TIME) -> Outcome:
    """Take one request apart, after the engine has generated it. Raises `KneeError` if the device fails on it."""
    engine = _engine(llm, spec)
    engine.clock = clock.now
    trial = Trial()
    try:
        run_trial(engine, spec.workload, spec.params, trial, clock.sleep)
    finally:
        sink.add_requests(request_rows(trial))
        sink.add_steps(step_rows(trial))
    if trial.errors:
        raise KneeError(trial.errors[0])
    generated = trial.requests[0]
    prompt, count = generated.prompt, len(generated.output)
    for blocks in (blocks_on := range(engine.kv.num_blocks)), ():  # warm up what the engine has not run
        _by_hand(llm, prompt, count if llm.device.learns_shapes else 2, blocks, clock.now)
    on = _by_hand(llm, prompt, count, blocks_on, clock.now)
    off = _by_hand(llm, prompt, count, (), clock.now)
    metrics = InspectMetrics(
        prefill=on.prefill,
        steps=on.steps,
        matches_generate=on.tokens == generated.output,
        text=generated.text if llm.tokenizer else None,
        kv_cache_off=InspectKvOff(prefill=off.prefill, steps=off.steps, same_tokens=off.tokens == on.tokens),
    )
    return _outcome(metrics, llm.device.warnings)


def _outcome(metrics: InspectMetrics, said: Sequence[str]) -> Outcome:
    first = metrics.prefill
    named = first.token_id if first.token is None else f'{first.token_id} "{first.token}"'
    warnings = [] if metrics.matches_generate else [warning("generate_differs")]
    if not metrics.kv_cache_off.same_tokens:
        warnings.append(warning("kv_cache_tokens_differ"))
    return Outcome(metrics, [*warnings, *fell_back(said)], [text("en", "note.first_token", token=named)])


def _engine(llm: LLM, spec: InspectSpec) -> Engine:
    policy = make_policy("single", max_batched_tokens=llm.device.token_budget_default)
    return llm.engine(policy, longest=spec.workload.longest, block_size=spec.block_size)


def _by_hand(llm: LLM, prompt: Sequence[int], count: int, blocks: Sequence[int], now: Callable[[], float]) -> _ByHand:
    """Generate `count` tokens with the device alone; no blocks means that every step runs the whole prefix."""
    logits, ms = _execute(llm, Span(prompt, 0, blocks, Want.ALL_LOGITS), now)
    top = _likeliest(llm, logits[-1])
    prefill = InspectPrefill(
        ms=ms,
        logits_shape=[1, *logits.shape],
        kv_layers=llm.program.layers if blocks else 0,
        kv_shape=[1, llm.program.kv_heads, len(prompt), llm.program.head_dim] if blocks else None,
        token_id=top[0].token_id,
        token=top[0].token,
        top=top,
    )
    steps: list[InspectStep] = []
    prefix = [*prompt, prefill.token_id]
    for number in range(1, count):
        new = prefix[-1:] if blocks else prefix
        span = Span(new, len(prefix) - len(new), blocks, Want.LOGITS)
        logits, ms = _execute(llm, span, now)
        steps.append(_chosen(llm, number, ms, len(prefix) if blocks else 0, logits[-1]))
        prefix.append(steps[-1].token_id)
    return _ByHand(prefill, steps)


def _execute(llm: LLM, span: Span, now: Callable[[], float]) -> tuple[FloatArray, float]:
    started = now()
    [output] = llm.device.execute([span])
    ms = (now() - started) * 1e3
    assert output.logits is not None
    return output.logits, ms


def _chosen(llm: LLM, step: int, ms: float, kv_len: int, logits: FloatArray) -> InspectStep:
    """The greedy choice from one row of logits, and who else was likely."""
    top = _likeliest(llm, logits)
    best = top[0]
    return InspectStep(step=step, ms=ms, kv_len=kv_len, token_id=best.token_id, token=best.token, top=top)


def _likeliest(llm: LLM, logits: FloatArray) -> list[TopCandidate]:
    wide = logits.astype(np.float64)
    logprobs = wide - wide.max()
    logprobs -= np.log(np.exp(logprobs).sum())
    # A stable sort of the negated values puts the lowest id first among equals, as argmax does.
    order = np.argsort(-logprobs, kind="stable")[:TOP]
    return [
        TopCandidate(token_id=int(token), token=_text(llm, int(token)), logprob=float(logprobs[token]))
        for token in order
    ]


def _text(llm: LLM, token: int) -> str | None:
    return llm.tokenizer.token_text(token) if llm.tokenizer else None
