"""The nouns of the engine: what a request is, what a step plan is, what comes out.

Ownership: the engine alone changes a `Request`; policies read it. Times are seconds of the engine's own monotonic
clock. Nothing here knows tensors, text or statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from knee.errors import RequestError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen and when to stop. The default is greedy.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and `repetition_penalty` 1 switch each filter off.
    `seed` starts the request's own random generator. `logprobs` asks for the log probabilities of that many top
    candidates a token (None: none).
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None

    def __post_init__(self) -> None:
        _check("max_new_tokens", self.max_new_tokens, low=1)
        _check("temperature", self.temperature, low=0.0)
        _check("top_k", self.top_k, low=0)
        _check("top_p", self.top_p, low=0.0, high=1.0, low_open=True)
        _check("min_p", self.min_p, low=0.0, high=1.0)
        _check("repetition_penalty", self.repetition_penalty, low=0.0, low_open=True)
        _check("seed", self.seed, low=0)
        if self.logprobs is not None:
            _check("logprobs", self.logprobs, low=0)
        if any(not text for text in self.stop):
            raise RequestError("a stop string is empty: leave it out")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < 1e-5


def _check(name: str, value: float, low: float, high: float = math.inf, low_open: bool = False) -> None:
    if isinstance(low, int) and type(value) is not int:
        raise RequestError(f"{name} is {value!r}: it must be a whole number")
    below = value <= low if low_open else value < low
    if not math.isfinite(value) or below or value > high:
        bound = f"{'above' if low_open else 'at least'} {low}" + (f" and at most {high}" if high < math.inf else "")
        raise RequestError(f"{name} is {value}: it must be {bound}")


class FinishReason(Enum):
    """Why a request ended."""

    LENGTH = "length"  # max_new_tokens were made
    EOS = "eos"  # the model's end-of-sequence token
    STOP = "stop"  # a stop string
    ABORTED = "aborted"  # the caller took it back
    ERROR = "error"  # the device failed on it


@dataclass(slots=True, eq=False)
class Request:
    """One prompt on its way through the engine.

    `prefix` (prompt + output) is what the model has been told so far. The first `num_cached` tokens of it are in the
    KV cache, in the blocks of `block_table`. The rest still has to run: the whole prefix at first, one token a step
    in decode, the whole prefix again after a preemption, and always the whole prefix with the KV cache off.

    A step counts as cached once it has been started. Where the engine plans ahead of it, its token has no id yet and
    is part of the prefix all the same: `num_unseen` is 1 then, and `num_pending` has it.
    """

    id: int
    prompt: tuple[int, ...]
    params: SamplingParams
    scheduled_at: float  # when it was due
    sent_at: float  # when the engine got it

    output: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)  # of its text, in order
    num_cached: int = 0
    num_unseen: int = 0
    block_table: list[int] = field(default_factory=list)
    num_preemptions: int = 0

    prefill_start: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None
    finish_reason: FinishReason | None = None
    token_times: list[float] = field(default_factory=list)

    @property
    def text(self) -> str:
        """What it says so far, as far as it is certain."""
        return "".join(self.pieces)

    @property
    def num_tokens(self) -> int:
        """Length of the prefix as far as it is known: prompt and output."""
        return len(self.prompt) + len(self.output)

    @property
    def num_pending(self) -> int:
        """Tokens that must run before the next one can be chosen; 1 in decode."""
        return len(self.prompt) + len(self.output) + self.num_unseen - self.num_cached

    @property
    def most_cached(self) -> int:
        """Tokens that its keys and values may take in the end; those of the last new token are never needed."""
        return len(self.prompt) + self.params.max_new_tokens - 1

    def tokens(self, start: int, stop: int) -> Sequence[int]:
        """Tokens `start` to `stop` (exclusive) of the prefix; a copy."""
        n = len(self.prompt)
        if start >= n:
            return self.output[start - n : stop - n]
        return self.prompt[start:stop] + tuple(self.output[: max(0, stop - n)])


# What is made anew in every step is not frozen, because a frozen dataclass takes five times as long to make. Nobody
# changes it all the same.


@dataclass(slots=True)
class Chunk:
    """Run the next `num_tokens` pending tokens of a request in this step."""

    request: Request
    num_tokens: int
    new_blocks: int  # that its table has to grow by before; in decode mostly none
    complete: bool  # these are all that are pending, so that the next token can be chosen
    decodes: bool  # this is a decode step; with the cache off, that one runs the whole prefix again


@dataclass(slots=True)
class StepPlan:
    """What a policy wants done in one step; an empty one means: nothing to run before `wake_at`.

    In this order: `preempt` give their blocks back and wait again; `admit` leave the queue and join the batch;
    `chunks` run. `wake_at` is None where only a new request can change the answer.
    """

    preempt: tuple[Request, ...] = ()
    admit: tuple[Request, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    wake_at: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of the most likely next tokens, with its natural-log probability."""

    token_id: int
    logprob: float


@dataclass(slots=True)
class TokenEvent:
    """One new token of one request. `text` is what became readable with it (whole characters only)."""

    request: Request
    token_id: int
    text: str
    at: float
    logprob: float | None = None
    top: tuple[Candidate, ...] = ()
    finish_reason: FinishReason | None = None


@dataclass(slots=True)
class StepStats:
    """What one engine step did. Times in seconds of the engine's clock.

    Steps may overlap: the next is planned and started while this one runs. So a step begins when it is its turn, which
    is when the one before has landed, and the durations of steps add up to the time that passed.
    """

    started_at: float
    duration: float
    device_time: float  # by the device's own clock, if it has one
    prefill_tokens: int
    decode_rows: int
    kv_tokens: int  # tokens in the KV cache after the step, of requests that go on
    waiting: int  # requests in the queue after admission
    batch_size: int  # requests that hold a slot
    preempted: int

    @property
    def host_time(self) -> float:
        """The part of the step that was not the device's: the host had work then that did not overlap."""
        return max(0.0, self.duration - self.device_time)


@dataclass(slots=True)
class StepResult:
    """What `Engine.step` returns. `stats` is None if nothing ran; then come back at `wake_at` or on a new request."""

    events: tuple[TokenEvent, ...] = ()
    stats: StepStats | None = None
    wake_at: float | None = None
