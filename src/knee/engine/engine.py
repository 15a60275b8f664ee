"""The engine: requests in, tokens out. It knows no tensors, no HTTP and no statistics.

One step is: look at the queue, let the policy plan, let the device execute, give the tokens to their requests. The
engine is the only one that changes a request, and everything happens in the caller's thread, in the caller's time:
whoever owns an engine calls `step` in a loop, and where nothing can run, waits as long as the step says.

On a device that overlaps, the engine is one step ahead of it: while a step runs, the next is planned and started, with
tokens in it that are still being made. What depends on such a token is found a step late: a request that turns out to
have ended has run once more by then, and what came of it is dropped.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any

from knee.collector import collector_paused
from knee.devices.base import UNKNOWN, Device, Span, SpanOutput, Want
from knee.engine.detokenize import Detokenizer, Spelling, TokenBytes
from knee.engine.kv import KVManager
from knee.engine.policies.base import Policy, View
from knee.engine.sampling import Sampler, draws_plainly, needs_logits
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
from knee.errors import KneeError, RequestError

Clock = Callable[[], float]

UNTRACED = StepStats(0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 0)
"""The report of a step that made none."""

NOWHERE: Mapping[int, int] = {}
_UNSEEN = (UNKNOWN,)


@dataclass(slots=True, eq=False)
class _Side:
    """What the engine keeps beside a request: who chooses its tokens, and its text."""

    want: Want  # TOKEN: the device chooses; LOGITS: the sampler does
    eos: frozenset[int]  # the tokens that end it
    sampler: Sampler | None
    draw: Callable[[], tuple[float, float]] | None  # the device draws: temperature and a number for the next token
    detokenizer: Detokenizer | None
    placed: bool = True  # waits or runs; no more, once its last token is on its way


@dataclass(slots=True, eq=False)
class _Flight:
    """A step that was started and has not landed."""

    plan: StepPlan
    batch: list[Span]
    batch_size: int
    waiting: int
    began: float  # when its turn came
    given: float  # when the device got it
    started: Any = None
    error: Exception | None = None  # it could not be started
    kv_tokens: int | None = None  # afterwards, if that was foreseen


@dataclass
class Engine:
    """Runs requests on a device under a policy.

    `kv` is the block manager of the device's pool (`KVManager.off()` recomputes every prefix). `tokenizer` may be
    None: then events carry no text and stop strings are refused. `more_expected` tells the policy that further
    requests may come; set it to False once the last one is in, or a static batch waits for company for ever. Without
    `trace` steps report nothing of themselves: for who wants to know what the reports cost. `overlap` False waits for
    each step before the next is planned, as is always done where the device does not overlap.
    """

    device: Device
    policy: Policy
    kv: KVManager
    tokenizer: TokenBytes | None = None
    eos_token_ids: frozenset[int] = frozenset()
    clock: Clock = time.perf_counter
    more_expected: bool = False
    trace: bool = True
    overlap: bool = True

    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    _sides: dict[int, _Side] = field(default_factory=dict)
    _ids: Iterator[int] = field(default_factory=count)
    _flight: _Flight | None = None

    def __post_init__(self) -> None:
        self.overlap = self.overlap and self.device.overlaps

    def step(self) -> StepResult:
        """Plan and start a step, start the next if that may overlap, and land the first.

        Returns the new tokens, or when to come back if there is nothing to run.
        """
        flight = self._flight
        if flight is None:
            now = self.clock()
            plan = self.policy.plan(self._view(now))
            if not plan.chunks:
                return StepResult(wake_at=plan.wake_at)
            self._flight = flight = self._start(plan, now)
        self._flight = self._start_next(flight) if self.overlap else None
        return self._land(flight)

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
        draw = None
        if sampler is not None and self.device.draws and draws_plainly(params):
            uniform, sampler = sampler.uniform, None
            draw = lambda: (params.temperature, uniform())  # noqa: E731
        self._sides[request.id] = _Side(
            Want.LOGITS if sampler else Want.TOKEN,
            frozenset() if params.ignore_eos else self.eos_token_ids,
            sampler,
            draw,
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
        """Whether any request is waiting or running, or a step has not landed."""
        return bool(self.waiting or self.running or self._flight)

    def run(self) -> Iterator[StepResult]:
        """Step until all submitted requests have ended; for callers whose requests are all there.

        Python's collector of cycles is off until then, for the caller as well.
        """
        self.more_expected = False
        with collector_paused():
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

    def _start(self, plan: StepPlan, now: float, sources: Mapping[int, int] = NOWHERE) -> _Flight:
        """Give the device a step. One that cannot be started lands with the error, after those before it."""
        batch = self._prepare(plan, sources)
        flight = _Flight(plan, batch, len(self.running), len(self.waiting), now, self.clock())
        try:
            flight.started = self.device.start(batch)
        except Exception as error:  # also a MemoryError: whatever it is, no request may be left behind half done
            flight.error = error
        except BaseException:
            self._end(flight, FinishReason.ABORTED)
            raise
        return flight

    def _start_next(self, flight: _Flight) -> _Flight | None:
        """Start the step after one that is in flight; None where there is none, or where it has to wait for tokens.

        The host must see a token before it plans on where it chooses it itself, and with the KV cache off, where every
        step runs the whole prefix.
        """
        if flight.error is not None or not self.kv.enabled or Want.LOGITS in [span.want for span in flight.batch]:
            return None
        sources = self._foresee(flight)
        now = self.clock()
        plan = self.policy.plan(self._view(now))
        return self._start(plan, now, sources) if plan.chunks else None

    def _foresee(self, flight: _Flight) -> dict[int, int]:
        """What is sure to come of a step that has not landed: which span makes whose token, and who ends with theirs.

        Who ends gives slot and blocks back at once: what the device does to the blocks next, it does after this step.
        """
        sources = {}
        for place, chunk in enumerate(flight.plan.chunks):
            request = chunk.request
            if chunk.complete and request.finish_reason is None:
                sources[request.id] = place
                request.num_unseen = 1
                if len(request.output) + 1 >= request.params.max_new_tokens:
                    self._vacate(request)
        flight.kv_tokens = self._kv_tokens()
        return sources

    def _prepare(self, plan: StepPlan, sources: Mapping[int, int]) -> list[Span]:
        """Carry out the plan's changes and describe the step to the device."""
        for request in plan.preempt:
            self._preempt(request)
        for request in plan.admit:
            self.waiting.remove(request)
            self.running.append(request)
        spans, sides, cached = [], self._sides, self.kv.enabled
        for chunk in plan.chunks:
            request = chunk.request
            if chunk.new_blocks:
                self.kv.allocate(request, chunk.num_tokens)
            start = request.num_cached
            side = sides[request.id]
            want = side.want if chunk.complete else Want.NOTHING
            if request.num_unseen:
                # It is the only token: more are pending after a preemption alone, and the step that made the one before
                # has landed by the time that the request is let in again.
                spans.append(Span(_UNSEEN, start, request.block_table, want, sources[request.id]))
            else:
                spans.append(Span(request.tokens(start, start + chunk.num_tokens), start, request.block_table, want))
            if side.draw is not None and chunk.complete:
                spans[-1].draw = side.draw()
            if cached:
                request.num_cached = start + chunk.num_tokens
        return spans

    def _preempt(self, request: Request) -> None:
        """Back to the queue, in front of all who never ran, in the order of arrival among the preempted."""
        self.running.remove(request)
        self.kv.release(request)
        request.num_preemptions += 1
        behind = sum(other.num_preemptions > 0 and other.id < request.id for other in self.waiting)
        self.waiting.insert(behind, request)

    # --- tokens -> requests --------------------------------------------------------------------------------------

    def _land(self, flight: _Flight) -> StepResult:
        """Wait for a step; if the device fails, its requests end with an error instead of vanishing."""
        try:
            if flight.error is not None:
                raise flight.error
            outputs, seconds = self.device.finish(flight.started)
        except Exception as error:
            if self._end(flight, FinishReason.ERROR) or not isinstance(error, KneeError):
                raise
            outputs, seconds = [SpanOutput()] * len(flight.plan.chunks), None  # it ran for requests that had ended
        except BaseException:
            self._end(flight, FinishReason.ABORTED)
            raise
        now = self.clock()
        events = self._apply(flight, outputs, now)
        if not self.trace:
            return StepResult(events, UNTRACED)
        return StepResult(events, self._stats(flight, now, seconds))

    def _end(self, flight: _Flight, reason: FinishReason) -> bool:
        """End the requests of a step that has failed; whether there were any left."""
        now = self.clock()
        left = [chunk.request for chunk in flight.plan.chunks if chunk.request.finish_reason is None]
        for request in left:
            request.prefill_start = flight.began if request.prefill_start is None else request.prefill_start
            self._leave(request, reason, now)
        return bool(left)

    def _apply(self, flight: _Flight, outputs: list[SpanOutput], now: float) -> tuple[TokenEvent, ...]:
        events = []
        chunks = flight.plan.chunks
        assert len(outputs) == len(chunks)
        for chunk, output in zip(chunks, outputs):  # noqa: B905  strict takes as long as two requests
            request = chunk.request
            if request.prefill_start is None:
                request.prefill_start = flight.began
            if chunk.complete and request.finish_reason is None:
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
        request.num_unseen = 0
        request.token_times.append(now)
        if request.first_token_at is None:
            request.first_token_at = now
        detokenizer = side.detokenizer
        text, reason = "", None
        if token_id in side.eos:
            reason = FinishReason.EOS
        elif detokenizer is not None:
            text = detokenizer.push(token_id)
            if detokenizer.finished:
                reason = FinishReason.STOP
        if reason is None and len(request.output) >= request.params.max_new_tokens:
            reason = FinishReason.LENGTH
        if reason is not None:
            if detokenizer is not None and reason is not FinishReason.STOP:
                text += detokenizer.flush()
            self._leave(request, reason, now)
        if text:
            request.pieces.append(text)
        return TokenEvent(request, token_id, text, now, logprob, top, reason)

    def _leave(self, request: Request, reason: FinishReason, now: float) -> None:
        self._vacate(request)
        detokenizer = self._sides.pop(request.id).detokenizer
        if detokenizer and reason in (FinishReason.ABORTED, FinishReason.ERROR):
            request.pieces.append(detokenizer.flush())
        request.finish_reason = reason
        request.finished_at = now

    def _vacate(self, request: Request) -> None:
        """Slot and blocks are free again; done once, though the end of a request may be foreseen before it comes."""
        side = self._sides[request.id]
        if side.placed:
            (self.running if request in self.running else self.waiting).remove(request)
            self.kv.release(request)
            side.placed = False

    def _stats(self, flight: _Flight, done: float, device_time: float | None) -> StepStats:
        """What the step did. Called last in it, and the clock is read last here: the duration holds all of it."""
        if device_time is None:
            device_time = done - (flight.given if flight.given > flight.began else flight.began)
        plan = flight.plan
        prefill = [chunk.num_tokens for chunk in plan.chunks if not chunk.decodes]
        kv_tokens = self._kv_tokens() if flight.kv_tokens is None else flight.kv_tokens
        landed = self.clock()
        if self._flight is not None:
            self._flight.began = landed
        return StepStats(  # by place: with names it takes three times as long
            flight.began,
            landed - flight.began,
            device_time,
            sum(prefill),
            len(plan.chunks) - len(prefill),
            kv_tokens,
            flight.waiting,
            flight.batch_size,
            len(plan.preempt),
        )

    def _kv_tokens(self) -> int:
        return sum([request.num_cached for request in self.running])

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
