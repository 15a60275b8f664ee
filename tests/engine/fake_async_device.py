"""The fake device as one that overlaps: it keeps what it is told in `start` and does it in `finish`, as late as it can.

It holds the engine to the contract: never more than two steps under way, finished in the order of their start, and an
unseen token only from a span of the batch before, where that one has not been finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from knee.devices.base import UNKNOWN, Span, SpanOutput, StepOutput, Want
from knee.errors import NumericsError
from tests.fake_device import FakeDevice


class BrokenContract(BaseException):
    """Not an `Exception`: an engine deals with those, and this one is its own fault."""


def require(holds: bool, otherwise: str) -> None:
    """Raise `BrokenContract` unless it holds."""
    if not holds:
        raise BrokenContract(otherwise)


@dataclass(eq=False)
class Started:
    """A step under way. The tables are copies: an engine may change its own as soon as `start` is back."""

    number: int
    batch: list[Span]
    before: Started | None
    outputs: list[SpanOutput] = field(default_factory=list)


class FakeAsyncDevice(FakeDevice):
    """Fails in step number `fail_at`: when that is finished, or else when it is started.

    `seconds` is what its own clock says that a step took.
    """

    overlaps = True

    def __init__(self, fail_at: int | None = None, fail_late: bool = True, seconds: float | None = None) -> None:
        super().__init__()
        self.fails = fail_at
        self.fail_late = fail_late
        self.seconds = seconds
        self.under_way: list[Started] = []
        self.most_under_way = 0
        self.unseen = 0
        self.number = 0

    def start(self, batch: Sequence[Span]) -> Started:
        """Nothing but checks."""
        require(len(self.under_way) < 2, "two steps are under way")
        number, self.number = self.number, self.number + 1
        if number == self.fails and not self.fail_late:
            raise NumericsError("a logit is NaN")
        before = self.under_way[-1] if self.under_way else None
        for span in batch:
            self._check(span, before)
        copies = [replace(span, tokens=tuple(span.tokens), block_table=tuple(span.block_table)) for span in batch]
        started = Started(number, copies, before)
        self.under_way.append(started)
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        return started

    def finish(self, started: Started) -> StepOutput:
        """All the work."""
        require(started is self.under_way.pop(0), "another step was started before")
        batch = [replace(span, tokens=self._known(span, started.before)) for span in started.batch]
        started.outputs = self.execute(batch)
        started.before = None
        if started.number == self.fails:
            raise NumericsError("a logit is NaN")
        return StepOutput(started.outputs, self.seconds)

    def _check(self, span: Span, before: Started | None) -> None:
        require(UNKNOWN not in span.tokens[:-1], "an unseen token is not the last")
        require((span.tokens[-1] == UNKNOWN) == (span.source is not None), "a source without an unseen token")
        if span.source is not None:
            if before is None:
                raise BrokenContract("the token is known by now")
            maker = before.batch[span.source]
            require(maker.want is Want.TOKEN, "the source makes no token")
            require(maker.start + len(maker.tokens) == span.start, "the source is another request's")
            self.unseen += 1

    def _known(self, span: Span, before: Started | None) -> Sequence[int]:
        if span.source is None:
            return span.tokens
        assert before is not None
        token = before.outputs[span.source].token
        assert token is not None
        return (*span.tokens[:-1], token)
