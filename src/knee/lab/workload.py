"""The work of an experiment: which prompts, how many new tokens, and when each request is due (`arrivals.py`).

Everything here is decided before anything runs and follows from the options and the seed alone, so that a workload
can be repeated to the token. It knows no engine and no clock: times are seconds from the start of a trial.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from knee.errors import RequestError, UserError
from knee.lab.arrivals import BURST, Arrival, TraceLine

DEFAULT_PROMPT = "Q: Explain why batching improves GPU utilization.\nA:"

# What a sweep asks when it is given no prompt: one style, different lengths, as requests of a service have.
BUILT_IN_PROMPTS = (
    DEFAULT_PROMPT,
    "Q: What is a cache?\nA:",
    "Q: Why does reading the weights of a model take longer than multiplying with them?\nA:",
    "Q: How does a bakery decide how many loaves to put in the oven at once?\nA:",
    "Q: Name three rivers.\nA:",
    "Q: What is the difference between latency and throughput, and which of them does a user notice first?\nA:",
    "Q: Why is the sky blue?\nA:",
    "Q: A bus leaves every ten minutes and carries forty people. How many can it carry in an hour?\nA:",
    "Q: What does an operating system do when two programs want the same memory?\nA:",
    "Q: Who wrote the first computer program?\nA:",
    "Q: Explain to a child why ships made of iron do not sink, although a small iron nail goes straight to the "
    "bottom of the sea.\nA:",
    "Q: How long is a day on Mars?\nA:",
    "Q: Give one reason for and one reason against keeping the results of a computation instead of computing them "
    "again.\nA:",
    "Q: What makes bread rise?\nA:",
    "Q: In a queue at a shop, when is it better to serve two customers together than one after the other?\nA:",
    "Q: Describe how a letter travels from one city to another.\nA:",
)

_LONGEST_WORKLOAD_S = 24 * 3600.0
_FORMS = '{"prompt": "…"} or {"prompt_ids": [1, 2]}'

Source = str | tuple[int, ...]
"""A prompt as the user gave it: a text, or token ids."""


# --- what they ask -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Prompt:
    """Token ids, and the text they came from where there was one."""

    ids: tuple[int, ...]
    text: str | None = None


PLACEHOLDER = Prompt((0,))
"""Stands for a prompt until there is a model to encode it, so that all else can be checked before one is loaded."""


def read_prompts_file(path: Path) -> tuple[Source, ...]:
    """Read a JSONL file with `prompt` or `prompt_ids` a line; empty lines are skipped.

    Raises `UserError` with the number of the first bad line.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"cannot read the prompts file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"the prompts file {path} is not UTF-8 text") from None
    sources = tuple(_source(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip())
    if not sources:
        raise UserError(f"the prompts file {path} has no prompts: write one JSON object a line")
    return sources


def _source(line: str, where: str) -> Source:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise UserError(f"{where}: the line is no JSON object: write {_FORMS}") from None
    given = {"prompt", "prompt_ids"} & value.keys() if isinstance(value, dict) else set()
    if len(given) != 1:
        raise UserError(f"{where}: write either {_FORMS}")
    if "prompt" in given:
        if not isinstance(value["prompt"], str):
            raise UserError(f"{where}: `prompt` is not a text: write {_FORMS}")
        return value["prompt"]
    return _ids(value["prompt_ids"], where)


def _ids(value: Any, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or any(type(token) is not int for token in value):
        raise UserError(f"{where}: `prompt_ids` is not a list of whole numbers: write {_FORMS}")
    return tuple(value)


def gather_sources(
    prompts: Sequence[str], prompt_ids: Sequence[tuple[int, ...]], prompts_file: Path | None
) -> tuple[Source, ...]:
    """The prompts a user gave, in one of three ways; empty if in none. Raises `UserError` for more than one way."""
    given = [
        name
        for name, value in (
            ("--prompt", prompts),
            ("--prompt-ids", prompt_ids),
            ("--prompts-file", prompts_file),
        )
        if value
    ]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} are both given: prompts come from one of them")
    if prompts_file:
        return read_prompts_file(prompts_file)
    return (*prompts, *prompt_ids)


def encode_sources(sources: Sequence[Source], encode: Callable[[str], list[int]]) -> tuple[Prompt, ...]:
    """Turn texts into token ids. Raises `RequestError` for an empty prompt."""
    prompts = tuple(
        Prompt(tuple(encode(source)), source) if isinstance(source, str) else Prompt(source) for source in sources
    )
    for number, prompt in enumerate(prompts, 1):
        if not prompt.ids:
            which = "the prompt" if len(prompts) == 1 else f"prompt {number}"
            raise RequestError(f"{which} is empty: give at least one token")
    return prompts


# --- both together -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workload:
    """Requests of an experiment: request i asks `prompts[i % len(prompts)]` and is due at `times[i]`.

    Each makes `max_new_tokens`, or request i makes `new_tokens[i]` where that is given, of which `max_new_tokens` is
    the largest.
    """

    prompts: tuple[Prompt, ...]
    requests: int
    max_new_tokens: int
    arrival: Arrival = BURST
    seed: int = 0
    new_tokens: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise UserError(f"the number of requests is {self.requests}: it must be at least 1")
        if self.times is not None and not self.times[-1] <= _LONGEST_WORKLOAD_S:  # also NaN, of the slowest rates
            raise UserError(
                f"at {self.arrival} the last of {self.requests} requests comes after "
                f"{self.times[-1] / 3600:.3g} hours: use a higher rate or fewer requests"
            )

    @cached_property
    def times(self) -> tuple[float, ...] | None:
        """When each request is due, in seconds from the trial's start; None in a closed loop."""
        return self.arrival.times(self.requests, self.seed)

    @property
    def span(self) -> float:
        """Seconds from the first arrival to the last, as far as that is known beforehand."""
        return self.times[-1] if self.times else 0.0

    def prompt(self, request: int) -> Prompt:
        """What a request asks; prompts are repeated in order where there are fewer than requests."""
        return self.prompts[request % len(self.prompts)]

    def tokens(self, request: int) -> int:
        """New tokens that a request asks for."""
        return self.max_new_tokens if self.new_tokens is None else self.new_tokens[request]

    @property
    def prompt_tokens(self) -> list[int]:
        """Length of each request's prompt."""
        return [len(self.prompt(request).ids) for request in range(self.requests)]

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and output."""
        return max(length + self.tokens(request) for request, length in enumerate(self.prompt_tokens))

    @property
    def typical(self) -> int:
        """The request whose length, prompt and output, is the median."""
        lengths = sorted((length + self.tokens(i), i) for i, length in enumerate(self.prompt_tokens))
        return lengths[len(lengths) // 2][1]

    @property
    def sha256(self) -> str:
        """Hash of all that decides what is asked and when; equal hashes mean equal work."""
        content: dict[str, Any] = {
            "prompt_ids": [self.prompt(request).ids for request in range(self.requests)],
            "max_new_tokens": self.max_new_tokens,
            "arrival": self._arrival_as_content(),
            "seed": self.seed,
        }
        if self.new_tokens is not None:
            content["new_tokens"] = self.new_tokens
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _arrival_as_content(self) -> str | list[float]:
        """A trace is its times, wherever its file lies."""
        return list(self.times) if self.arrival.kind == "trace" and self.times else str(self.arrival)


# --- from a trace ------------------------------------------------------------------------------------------------


def trace_sources(trace: Sequence[TraceLine], filler: Sequence[int]) -> tuple[Source, ...]:
    """What each line of a trace asks; where it only says how long, that many tokens of `filler`, repeated.

    Every such prompt starts at another place of it, so that no two are the same.
    """
    return tuple(
        tuple(islice(cycle((*filler[i % len(filler) :], *filler[: i % len(filler)])), line.prompt_length))
        if line.prompt is None
        else line.prompt
        for i, line in enumerate(trace)
    )


def replayed(arrival: Arrival, trace: Sequence[TraceLine]) -> Arrival:
    """The arrival with the trace's times."""
    return Arrival("trace", file=arrival.file, replayed=tuple(line.arrival for line in trace))
