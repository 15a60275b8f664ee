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
from itertools import count

from knee.devices.base import Device, Span, SpanOutput, Want
from knee.engine.detokenize import Detokenizer, TokenBytes
from knee.engine.kv import KVManager
from knee.engine.policies.base import Policy, View
from knee.engine.sampling import Choice, Sampler, needs_logits
from knee.engine.types import (
    Chunk,
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


@dataclass(slots=True, eq=False)
class _Side:
    """What the engine keeps beside a request: its sampler and its text."""

    sampler: Sampler | None
    detokenizer: Detokenizer | None


@dataclass
class Engine:
    """Runs requests on a device under a policy.

    `kv` is the block manager of the device's pool (`KVManager.off()` recomputes every prefix). `tokenizer` may be
    None: then events carry no text and stop strings are refused. `more_expected` tells the policy that further
    requests may come; set it to False once the last one is in, or a static batch waits for company for ever.
    """

    device: Device
    policy: Policy
    kv: KVManager
    tokenizer: TokenBytes | None = None
    eos_token_ids: frozenset[int] = frozenset()
    clock: Clock = time.perf_counter
    more_expected: bool = False

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
        before = self.clock()
        outputs = self._execute(batch, plan)
        after = self.clock()
        counts = _Counts.of(plan, self)
        events = self._apply(plan, outputs, after)
        return StepResult(events, counts.finish(self, started, after - before))

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
        self._sides[request.id] = _Side(
            Sampler(params, request.prompt) if needs_logits(params) else None,
            Detokenizer(self.tokenizer, params.stop) if self.tokenizer else None,
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
        for chunk in plan.chunks:
            self.kv.allocate(chunk.request, chunk.num_tokens)
            if chunk.request.prefill_start is None:
                chunk.request.prefill_start = now
        return [self._span(chunk) for chunk in plan.chunks]

    def _preempt(self, request: Request) -> None:
        """Back to the queue, in front of all who never ran, in the order of arrival among the preempted."""
        self.running.remove(request)
        self.kv.release(request)
        request.num_preemptions += 1
        behind = sum(other.num_preemptions > 0 and other.id < request.id for other in self.waiting)
        self.waiting.insert(behind, request)

    def _span(self, chunk: Chunk) -> Span:
        request = chunk.request
        start = request.num_cached
        tokens = request.tokens(start, start + chunk.num_tokens)
        return Span(tokens, start, request.block_table, self._want(chunk))

    def _want(self, chunk: Chunk) -> Want:
        if chunk.num_tokens < chunk.request.num_pending:
            return Want.NOTHING
        return Want.TOKEN if self._sides[chunk.request.id].sampler is None else Want.LOGITS

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
        for chunk, output in zip(plan.chunks, outputs, strict=True):
            request = chunk.request
            complete = chunk.num_tokens == request.num_pending
            if self.kv.enabled:
                request.num_cached += chunk.num_tokens
            if complete:
                events.append(self._give(request, self._choose(request, output), now))
        return tuple(events)

    def _choose(self, request: Request, output: SpanOutput) -> Choice:
        sampler = self._sides[request.id].sampler
        if sampler is None:
            assert output.token is not None
            return Choice(output.token)
        assert output.logits is not None
        return sampler.choose(output.logits[-1], request.output)

    def _give(self, request: Request, choice: Choice, now: float) -> TokenEvent:
        """Append one token, its text, and end the request where it ends."""
        request.output.append(choice.token_id)
        request.token_times.append(now)
        if request.first_token_at is None:
            request.first_token_at = now
        detokenizer = self._sides[request.id].detokenizer
        is_eos = choice.token_id in self.eos_token_ids and not request.params.ignore_eos
        text = detokenizer.push(choice.token_id) if detokenizer and not is_eos else ""
        reason = self._reason(request, is_eos, detokenizer)
        if reason and detokenizer and reason is not FinishReason.STOP:
            text += detokenizer.flush()
        request.text += text
        if reason:
            self._leave(request, reason, now)
        return TokenEvent(request, choice.token_id, text, now, choice.logprob, choice.top, reason)

    def _reason(self, request: Request, is_eos: bool, detokenizer: Detokenizer | None) -> FinishReason | None:
        if is_eos:
            return FinishReason.EOS
        if detokenizer and detokenizer.finished:
            return FinishReason.STOP
        if len(request.output) >= request.params.max_new_tokens:
            return FinishReason.LENGTH
        return None

    def _leave(self, request: Request, reason: FinishReason, now: float) -> None:
        (self.running if request in self.running else self.waiting).remove(request)
        self.kv.release(request)
        detokenizer = self._sides.pop(request.id).detokenizer
        if detokenizer and reason in (FinishReason.ABORTED, FinishReason.ERROR):
            request.text += detokenizer.flush()
        request.finish_reason = reason
        request.finished_at = now

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


@dataclass(frozen=True, slots=True)
class _Counts:
    """A step's work, counted before its tokens change the requests."""

    prefill_tokens: int
    decode_rows: int
    batch_size: int
    preempted: int

    @classmethod
    def of(cls, plan: StepPlan, engine: Engine) -> _Counts:
        tokens = sum(chunk.num_tokens for chunk in plan.chunks)
        decode = [c.num_tokens for c in plan.chunks if _decodes(c.request, engine.kv.enabled)]
        return cls(tokens - sum(decode), len(decode), len(engine.running), len(plan.preempt))

    def finish(self, engine: Engine, started: float, device_time: float) -> StepStats:
        """Called last in a step, so that its duration holds all of it."""
        return StepStats(
            started_at=started,
            duration=engine.clock() - started,
            device_time=device_time,
            prefill_tokens=self.prefill_tokens,
            decode_rows=self.decode_rows,
            kv_tokens=sum(request.num_cached for request in engine.running),
            waiting=len(engine.waiting),
            batch_size=self.batch_size,
            preempted=self.preempted,
        )


def _decodes(request: Request, kv_enabled: bool) -> bool:
    """Whether a request's chunk is a decode step; with the cache off that one runs the whole prefix again."""
    return request.is_decoding if kv_enabled else bool(request.output)
