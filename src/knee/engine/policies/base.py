"""The contract of a batch policy, and the part of it that all policies share.

A policy answers one question: who may join the batch now, and if nobody, when is it worth asking again? That is
`admit`, and it is all that single, static, dynamic and continuous batching differ in. How the admitted requests
share a step is the same for all of them and stands in `plan`:

- decode first, one token a request; then prefill, oldest request first, in chunks under the token budget, so that
  a long prompt delays the others by a bounded step (Sarathi-Serve, Agrawal et al. 2024);
- when the KV pool runs dry, the youngest request gives its blocks back and waits again; since the oldest always
  runs, every request ends;
- no padding: a request takes as many rows as it has tokens to run.

A policy sees integers and times. It may keep state of its own but changes no request. The same code can be driven
by the engine, by a fake clock in a test, or by a simulator.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
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
        """Blocks to add to the request's table before its next `num_tokens` tokens can run; 0 with the cache off."""


@dataclass(frozen=True, slots=True)
class View:
    """What a policy sees before a step."""

    now: float
    waiting: Sequence[Request]  # preempted requests first, then in order of arrival
    running: Sequence[Request]  # in order of admission, oldest first
    pool: Pool
    more_expected: bool  # whether further requests may still come


@dataclass(frozen=True, slots=True)
class Admission:
    """Let the first `count` waiting requests in; ask again at `wake_at` at the latest, if given."""

    count: int
    wake_at: float | None = None


def preempted(view: View) -> int:
    """How many of the waiting requests held a slot before and were preempted; they stand first in the queue."""
    return sum(request.num_preemptions > 0 for request in view.waiting)


class Policy(ABC):
    """Who joins the batch, and when. See the module's text for what is shared."""

    name: ClassVar[str]

    def __init__(self, max_batch_size: int = 1, max_batched_tokens: int = 512) -> None:
        if max_batch_size < 1:
            raise UserError(f"the batch size is {max_batch_size}: it must be at least 1")
        if max_batched_tokens < max_batch_size:
            raise UserError(
                f"the token budget ({max_batched_tokens}) is below the batch size ({max_batch_size}): "
                "every request in decode needs one token a step"
            )
        self.max_batch_size = max_batch_size
        self.max_batched_tokens = max_batched_tokens

    @abstractmethod
    def admit(self, view: View) -> Admission:
        """Decide who joins. `count` may be too large: free slots and the pool limit it further in `plan`."""

    def plan(self, view: View) -> StepPlan:
        """The next step: who gives way, who joins, who runs how many tokens."""
        raise NotImplementedError
