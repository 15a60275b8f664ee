"""The contract of a batch policy, and the part of it that all policies share.

A policy answers one question: who may join the batch now, and if nobody, when is it worth asking again? That
is `admit`, and it is all that single, static, dynamic and continuous batching differ in. How the admitted
requests share a step is the same for all of them and stands in `plan`:

- decode first, one token a request; then prefill, oldest request first, in chunks under the token budget, so
  that a long prompt delays the others by a bounded step (Sarathi-Serve, Agrawal et al. 2024);
- when the KV pool runs dry, the youngest request gives its blocks back and waits again; since the oldest
  always runs, every request ends;
- no padding: a request takes as many rows as it has tokens to run.

A policy sees integers and times. It may keep state of its own but changes no request. The same code can be
driven by the engine, by a fake clock in a test, or by a simulator.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import ClassVar, Protocol

from knee.engine.types import Chunk, Request, StepPlan
from knee.errors import UserError


class Pool(Protocol):
    """What a policy may ask about the KV pool."""

    @property
    def enabled(self) -> bool:
        """False with the KV cache off: no blocks, and a request always runs its whole prefix in one chunk."""

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody owns."""

    def blocks_needed(self, request: Request, num_tokens: int) -> int:
        """Blocks to add to the request's table before its next `num_tokens` tokens can run (cache off: 0)."""


@dataclass(slots=True)  # not frozen, as all that is made anew in every step
class View:
    """What a policy sees before a step."""

    now: float
    waiting: Sequence[Request]  # preempted requests first, then in order of arrival
    running: Sequence[Request]  # in order of admission, oldest first
    pool: Pool
    more_expected: bool  # whether further requests may still come


@dataclass(frozen=True, slots=True)
class Admission:
    """Let the first `count` waiting requests in; or, with nobody running, ask again at `wake_at`."""

    count: int
    wake_at: float | None = None


def preempted(view: View) -> int:
    """How many of the waiting requests lost their slot to a preemption; they stand first in the queue."""
    return sum(1 for _ in takewhile(lambda request: request.num_preemptions, view.waiting))


class Policy(ABC):
    """Who joins the batch, and when. See the module's text for what is shared."""

    name: ClassVar[str]

    def __init__(self, max_batch_size: int = 1, max_batched_tokens: int = 512) -> None:
        require_whole("the batch size", max_batch_size)
        require_whole("the token budget", max_batched_tokens)
        if max_batched_tokens < max_batch_size:
            raise UserError(
                f"the token budget ({max_batched_tokens}) is below the batch size ({max_batch_size}): "
                "every request in decode needs one token a step"
            )
        self.max_batch_size = max_batch_size
        self.max_batched_tokens = max_batched_tokens

    @abstractmethod
    def admit(self, view: View) -> Admission:
        """Decide who joins; asked where somebody waits and a slot is free.

        `count` may be too large: free slots and the pool limit it further in `plan`.
        """

    def plan(self, view: View) -> StepPlan:
        """The next step: who gives way (youngest first), who joins, who runs how many tokens."""
        step = _Step(view.pool, self.max_batched_tokens)
        step.serve(view.running)
        if step.preempted or not view.waiting or len(view.running) >= self.max_batch_size:
            return StepPlan(tuple(step.preempted), (), tuple(step.chunks))

        admission = self.admit(view)
        joining = self._joining(view, admission.count)
        step.serve(joining)
        return StepPlan(admit=tuple(joining), chunks=tuple(step.chunks), wake_at=admission.wake_at)

    def _joining(self, view: View, count: int) -> list[Request]:
        """The first waiting requests, at most `count`, that find a free slot and room for their whole prefix.

        Nobody overtakes: the first that does not fit ends it. Room is what is left when all before have their
        whole prefix, and a block more if they may still grow; else a newcomer would take what they need next, only
        to lose it again.
        """
        slots = min(count, self.max_batch_size - len(view.running))
        if slots < 1:
            return []
        needed = view.pool.blocks_needed
        room = view.pool.free_blocks - sum(needed(request, request.num_pending) for request in view.running)
        spare = sum(_grows(request, view.pool) for request in view.running)
        joining: list[Request] = []
        for request in islice(view.waiting, slots):
            room -= needed(request, request.num_pending)
            if room < spare:
                break
            spare += _grows(request, view.pool)
            joining.append(request)
        return joining


def _grows(request: Request, pool: Pool) -> bool:
    """Whether the request may need more blocks than its prefix does."""
    still_to_cache = request.most_cached - request.num_cached
    return pool.blocks_needed(request, still_to_cache) > pool.blocks_needed(request, request.num_pending)


def require_whole(what: str, value: int) -> None:
    """Raise `UserError` unless `value` is a whole number of at least 1."""
    if not isinstance(value, int) or value < 1:
        raise UserError(f"{what} is {value}: it must be a whole number, at least 1")


class _Step:
    """A step in the making: its chunks, who gives way, and what is left of the token budget and the pool."""

    __slots__ = ("_blocks", "_budget", "_pool", "chunks", "preempted")

    def __init__(self, pool: Pool, budget: int) -> None:
        self.chunks: list[Chunk] = []
        self.preempted: list[Request] = []
        self._pool = pool
        self._blocks = pool.free_blocks
        self._budget = budget if pool.enabled else sys.maxsize  # an uncached prefix cannot be split

    def serve(self, requests: Iterable[Request]) -> None:
        """Give each request the tokens that the budget allows; where blocks run out, the youngest give way.

        Oldest first is decode first: nobody gets a token before the prefill of all its elders is done.
        """
        line, cached, blocks_needed = deque(requests), self._pool.enabled, self._pool.blocks_needed
        while line:
            request = line.popleft()
            pending = request.num_pending
            num_tokens = pending if pending < self._budget else self._budget
            blocks = blocks_needed(request, num_tokens)
            while blocks > self._blocks and line:
                self._preempt(line.pop())
            if blocks > self._blocks:
                self._preempt(request)
            elif num_tokens:
                decodes = (pending == 1 or not cached) and (request.num_unseen > 0 or bool(request.output))
                self.chunks.append(Chunk(request, num_tokens, blocks, num_tokens == pending, decodes))
                self._blocks -= blocks
                self._budget -= num_tokens

    def _preempt(self, request: Request) -> None:
        self.preempted.append(request)
        self._blocks += len(request.block_table)
