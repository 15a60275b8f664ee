"""The engine: requests in, tokens out. It knows no tensors, no HTTP and no statistics.

One step is: look at the queue, let the policy plan, let the device execute, give the tokens to their requests. The
engine is the only one that changes a request, and everything happens in the caller's thread, in the caller's time:
whoever owns an engine calls `step` in a loop, and where nothing can run, waits as long as the step says.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count

from knee.devices.base import Device, Span, SpanOutput, Want
from knee.engine.detokenize import Detokenizer, Spelling, TokenBytes
from knee.engine.kv import KVManager
from knee.engine.policies.base import Policy, View
from knee.engine.sampling import Sampler, needs_logits
from knee.engine.types import (
    Candidate,
    FinishReason,
    Request,
    SamplingParams,
    StepPlan,
    StepResult,
    StepStats,
    TokenEvent,
)
from knee.errors import RequestError

Clock = Callable[[], float]

UNTRACED = StepStats(0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 0)
"""The report of a step that made none."""


@dataclass(slots=True, eq=False)
class _Side:
    """What the engine keeps beside a request: who chooses its tokens, and its text."""

    want: Want  # TOKEN: the device chooses; LOGITS: the sampler does
    sampler: Sampler | None
    detokenizer: Detokenizer | None


@dataclass
class Engine:
    """Runs requests on a device under a policy.

    `kv` is the block manager of the device's pool (`KVManager.off()` recomputes every prefix). `tokenizer` may be
    None: then events carry no text and stop strings are refused. `more_expected` tells the policy that further
    requests may come; set it to False once the last one is in, or a static batch waits for company for ever. Without
    `trace` steps report nothing of themselves: for who wants to know what the reports cost.
    """

    device: Device
    policy: Policy
    kv: KVManager
    tokenizer: TokenBytes | None = None
    eos_token_ids: frozenset[int] = frozenset()
    clock: Clock = time.perf_counter
    more_expected: bool = False
    trace: bool = True

    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    _sides: dict[int, _Side] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=count)

    def step(self) -> StepResult:
        """Plan, execute, apply. Returns the new tokens, or when to come back if there is nothing to run."""
        started = self.clock()
        plan = self.policy.plan(self._view(started))
        if not plan.chunks:
            return StepResult(wake_at=plan.wake_at)
        batch = self._prepare(plan, started)
        slots = len(self.running)
        before = self.clock()
        outputs = self._execute(batch, plan)
        after = self.clock()
        events = self._apply(plan, outputs, after)
        return StepResult(events, self._stats(plan, slots, started, after - before) if self.trace else UNTRACED)

    def submit(
        self, prompt: Sequence[int], params: SamplingParams | None = None, scheduled_at: float | None = None
    ) -> Request:
        """Queue a request. Raises `RequestError` for one that can never be served.

        `scheduled_at` (the engine's clock) is when it was due, if that is not now.
        """
        params = params or SamplingParams()
        self._check(prompt, params)
        now = self.clock()
        due = now if scheduled_at is None else scheduled_at
        request = Request(next(self._ids), tuple(prompt), params, scheduled_at=due, sent_at=now)
        sampler = Sampler(params, request.prompt) if needs_logits(params) else None
        self._sides[request.id] = _Side(
            Want.LOGITS if sampler else Want.TOKEN,
            sampler,
            Detokenizer(self._spelling, params.stop) if self.tokenizer else None,
        )
        self.waiting.append(request)
        return request

    def abort(self, request: Request) -> None:
        """Take a request back, waiting or running. What it has produced so far stays."""
        if request.finish_reason is None:
            self._leave(request, FinishReason.ABORTED, self.clock())

    @property
    def has_work(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self.waiting or self.running)

    def run(self) -> Iterator[StepResult]:
        """Step until all submitted requests have ended; for callers whose requests are all there."""
        self.more_expected = False
        while self.has_work:
            result = self.step()
            if result.stats is None:
                time.sleep(max(0.0, (result.wake_at or 0.0) - self.clock()))
            yield result

    @cached_property
    def _spelling(self) -> Spelling:
        """Made with the first request, for all of them."""
        assert self.tokenizer is not None
        return Spelling(self.tokenizer)

    # --- plan -> batch -------------------------------------------------------------------------------------------

    def _view(self, now: float) -> View:
        return View(now, self.waiting, self.running, self.kv, self.more_expected)

    def _prepare(self, plan: StepPlan, now: float) -> list[Span]:
        """Carry out the plan's changes and describe the step to the device."""
        for request in plan.preempt:
            self._preempt(request)
        for request in plan.admit:
            self.waiting.remove(request)
            self.running.append(request)
        spans = []
        for chunk in plan.chunks:
            request = chunk.request
            if chunk.new_blocks:
                self.kv.allocate(request, chunk.num_tokens)
            if request.prefill_start is None:
                request.prefill_start = now
            start = request.num_cached
            tokens = request.tokens(start, start + chunk.num_tokens)
            want = self._sides[request.id].want if chunk.complete else Want.NOTHING
            spans.append(Span(tokens, start, request.block_table, want))
        return spans

    def _preempt(self, request: Request) -> None:
        """Back to the queue, in front of all who never ran, in the order of arrival among the preempted."""
        self.running.remove(request)
        self.kv.release(request)
        request.num_preemptions += 1
        behind = sum(other.num_preemptions > 0 and other.id < request.id for other in self.waiting)
        self.waiting.insert(behind, request)

    def _execute(self, batch: list[Span], plan: StepPlan) -> list[SpanOutput]:
        """Run the step; if the device fails, its requests end with an error instead of vanishing."""
        try:
            return self.device.execute(batch)
        except Exception:  # also a MemoryError: whatever it is, no request may be left behind half done
            now = self.clock()
            for chunk in plan.chunks:
                self._leave(chunk.request, FinishReason.ERROR, now)
            raise

    # --- tokens -> requests --------------------------------------------------------------------------------------

    def _apply(self, plan: StepPlan, outputs: list[SpanOutput], now: float) -> tuple[TokenEvent, ...]:
        events = []
        assert len(outputs) == len(plan.chunks)
        for chunk, output in zip(plan.chunks, outputs):  # noqa: B905  strict takes as long as two requests
            request = chunk.request
            if self.kv.enabled:
                request.num_cached += chunk.num_tokens
            if chunk.complete:
                events.append(self._give(request, output, now))
        return tuple(events)

    def _give(self, request: Request, output: SpanOutput, now: float) -> TokenEvent:
        """Append the next token and its text, and end the request where it ends."""
        side = self._sides[request.id]
        token_id = output.token
        logprob: float | None = None
        top: tuple[Candidate, ...] = ()
        if side.sampler is not None:
            assert output.logits is not None
            choice = side.sampler.choose(output.logits[-1], request.output)
            token_id, logprob, top = choice.token_id, choice.logprob, choice.top
        assert token_id is not None
        request.output.append(token_id)
        request.token_times.append(now)
        if request.first_token_at is None:
            request.first_token_at = now
        detokenizer = side.detokenizer
        is_eos = token_id in self.eos_token_ids and not request.params.ignore_eos
        text = detokenizer.push(token_id) if detokenizer is not None and not is_eos else ""
        reason = self._reason(request, is_eos, detokenizer)
        if reason is not None:
            if detokenizer is not None and reason is not FinishReason.STOP:
                text += detokenizer.flush()
            self._leave(request, reason, now)
        if text:
            request.pieces.append(text)
        return TokenEvent(request, token_id, text, now, logprob, top, reason)

    def _reason(self, request: Request, is_eos: bool, detokenizer: Detokenizer | None) -> FinishReason | None:
        if is_eos:
            return FinishReason.EOS
        if detokenizer is not None and detokenizer.finished:
            return FinishReason.STOP
        if len(request.output) >= request.params.max_new_tokens:
            return FinishReason.LENGTH
        return None

    def _leave(self, request: Request, reason: FinishReason, now: float) -> None:
        (self.running if request in self.running else self.waiting).remove(request)
        self.kv.release(request)
        detokenizer = self._sides.pop(request.id).detokenizer
        if detokenizer and reason in (FinishReason.ABORTED, FinishReason.ERROR):
            request.pieces.append(detokenizer.flush())
        request.finish_reason = reason
        request.finished_at = now

    def _stats(self, plan: StepPlan, slots: int, started: float, device_time: float) -> StepStats:
        """What the step did. Called last in it, and the clock is read last here: the duration holds all of it."""
        prefill = [chunk.num_tokens for chunk in plan.chunks if not chunk.decodes]
        return StepStats(
            started_at=started,
            device_time=device_time,
            prefill_tokens=sum(prefill),
            decode_rows=len(plan.chunks) - len(prefill),
            kv_tokens=sum([request.num_cached for request in self.running]),
            waiting=len(self.waiting),
            batch_size=slots,
            preempted=len(plan.preempt),
            duration=self.clock() - started,
        )

    # --- bad requests --------------------------------------------------------------------------------------------

    def _check(self, prompt: Sequence[int], params: SamplingParams) -> None:
        program = self.device.program
        if not prompt:
            raise RequestError("the prompt is empty: give at least one token")
        wrong = next((token for token in prompt if not 0 <= token < program.vocab_size), None)
        if wrong is not None:
            raise RequestError(f"token id {wrong} is not in the vocabulary: ids go from 0 to {program.vocab_size - 1}")
        total = len(prompt) + params.max_new_tokens
        if total > program.positions:
            raise RequestError(
                f"{len(prompt)} prompt tokens and {params.max_new_tokens} new ones make {total}: the model's context "
                f"is {program.positions}; shorten the prompt or ask for fewer new tokens"
            )
        if not self.kv.can_ever_hold(total - 1):
            raise RequestError(
                f"the request needs room for {total - 1} tokens in the KV cache, which holds "
                f"{self.kv.num_blocks * self.kv.block_size}: give it more blocks or ask for less"
            )
        if params.stop and self.tokenizer is None:
            raise RequestError("stop strings need a tokenizer, and this model was loaded without one")
