"""A fake engine: a real policy and a real KV manager, a made-up clock and made-up tokens.

It does to the requests what the engine does, checks every plan against the contract of a policy, and keeps
what happened, so that a test can state a law over it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from knee.engine.kv import KVManager
from knee.engine.policies.base import Policy, View
from knee.engine.types import Chunk, Request, SamplingParams, StepPlan

STEP_S, TOKEN_S = 0.002, 0.0005  # what a step costs, and every token in it


def make_request(id: int, prompt: int = 4, new: int = 3, at: float = 0.0) -> Request:
    return Request(id, tuple(range(prompt)), SamplingParams(max_new_tokens=new), scheduled_at=at, sent_at=at)


@dataclass(frozen=True)
class Step:
    """One step that ran: who ran and who waited before it, what was planned, when it was over."""

    started_at: float
    ended_at: float
    running: tuple[Request, ...]
    waiting: tuple[Request, ...]
    newcomers: tuple[Request, ...]  # who joined and had never held a slot before
    more_expected: bool
    plan: StepPlan


@dataclass
class FakeEngine:
    policy: Policy
    kv: KVManager
    arrivals: deque[Request]
    now: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)
    running: list[Request] = field(default_factory=list)
    done: list[Request] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)

    @classmethod
    def of(cls, policy: Policy, kv: KVManager, *requests: Request) -> FakeEngine:
        return cls(policy, kv, deque(sorted(requests, key=lambda request: request.scheduled_at)))

    def run(self, max_steps: int = 100_000) -> FakeEngine:
        """Until every request has ended."""
        while self.arrivals or self.waiting or self.running:
            assert len(self.steps) < max_steps, "the engine does not come to an end"
            self.step()
        return self

    def step(self) -> None:
        while self.arrivals and self.arrivals[0].scheduled_at <= self.now:
            self.waiting.append(self.arrivals.popleft())
        view = View(self.now, self.waiting, self.running, self.kv, bool(self.arrivals))
        plan = self.policy.plan(view)
        check(plan, view, self.policy)
        if plan.chunks:
            cost = STEP_S + TOKEN_S * sum(chunk.num_tokens for chunk in plan.chunks)
            self._record(plan, view, cost)
            self._prepare(plan)
            self.now += cost
            for chunk in plan.chunks:
                self._advance(chunk)
        else:
            self._sleep(plan)
        self.kv.check_integrity([*self.running, *self.waiting, *self.done])

    def _sleep(self, plan: StepPlan) -> None:
        assert not any((plan.preempt, plan.admit, self.running)), "a batch that stands still"
        events = [plan.wake_at] if plan.wake_at is not None else []
        events += [request.scheduled_at for request in list(self.arrivals)[:1]]
        assert events, "requests wait, and nothing will ever happen"
        assert min(events) > self.now, "woken too early"
        self.now = min(events)

    def _record(self, plan: StepPlan, view: View, cost: float) -> None:
        newcomers = tuple(request for request in plan.admit if request.num_preemptions == 0)
        running, waiting = tuple(view.running), tuple(view.waiting)
        times = (view.now, view.now + cost)
        self.steps.append(Step(*times, running, waiting, newcomers, view.more_expected, plan))

    def _prepare(self, plan: StepPlan) -> None:
        for request in plan.preempt:
            self.running.remove(request)
            self.kv.release(request)
            request.num_preemptions += 1
            self.waiting.appendleft(request)
        for request in plan.admit:
            assert self.waiting.popleft() is request
            self.running.append(request)
        for chunk in plan.chunks:
            self.kv.allocate(chunk.request, chunk.num_tokens)

    def _advance(self, chunk: Chunk) -> None:
        request = chunk.request
        complete = chunk.num_tokens == request.num_pending
        if self.kv.enabled:
            request.num_cached += chunk.num_tokens
        if complete:
            request.output.append(len(request.output))
        if len(request.output) == request.params.max_new_tokens:
            self.running.remove(request)
            self.kv.release(request)
            self.done.append(request)

    @property
    def story(self) -> list[dict[int, int]]:
        """What ran: for each step, the tokens of each request by its id."""
        return [{c.request.id: c.num_tokens for c in step.plan.chunks} for step in self.steps]


def check(plan: StepPlan, view: View, policy: Policy) -> None:
    """Assert what every plan promises."""
    chunks = {chunk.request: chunk.num_tokens for chunk in plan.chunks}
    batch = [*view.running, *plan.admit]
    gone = len(plan.preempt)
    assert len(chunks) == len(plan.chunks), "two chunks for one request"
    assert list(plan.preempt) == view.running[len(view.running) - gone :][::-1], "not the youngest gave way"
    assert list(plan.admit) == list(view.waiting)[: len(plan.admit)], "somebody overtook"
    assert chunks.keys() <= set(batch) - set(plan.preempt), "a chunk for somebody outside the batch"
    assert len(batch) - gone <= policy.max_batch_size
    assert not batch or batch[0] in chunks, "the oldest stands still"
    assert all(1 <= num_tokens <= request.num_pending for request, num_tokens in chunks.items())
    assert plan.wake_at is None or not plan.chunks
    decoding = {request for request in view.running if request.output and request.num_pending == 1}
    assert decoding - set(plan.preempt) <= chunks.keys(), "a decode waits for somebody's prefill"
    for chunk in plan.chunks:
        check_facts(chunk, view)
    check_room(plan, view, policy)


def check_facts(chunk: Chunk, view: View) -> None:
    """Assert what a chunk says about its request, which the engine takes at its word."""
    request = chunk.request
    assert chunk.new_blocks == view.pool.blocks_needed(request, chunk.num_tokens)
    assert chunk.complete == (chunk.num_tokens == request.num_pending)
    assert chunk.decodes == (bool(request.output) and (request.num_pending == 1 or not view.pool.enabled))


def check_room(plan: StepPlan, view: View, policy: Policy) -> None:
    """Assert that a plan keeps to its token budget and to the pool; with the cache off, prefixes are whole."""
    if not view.pool.enabled:
        assert all(chunk.num_tokens == chunk.request.num_tokens for chunk in plan.chunks)
        assert len(plan.chunks) == len(view.running) + len(plan.admit)
        return
    assert sum(chunk.num_tokens for chunk in plan.chunks) <= policy.max_batched_tokens
    freed = sum(len(request.block_table) for request in plan.preempt)
    needed = sum(view.pool.blocks_needed(chunk.request, chunk.num_tokens) for chunk in plan.chunks)
    assert needed <= view.pool.free_blocks + freed
