"""The work of an experiment: which prompts, how many new tokens, and when each request is due.

Everything here is decided before anything runs and follows from the options and the seed alone, so that a workload
can be repeated to the token. It knows no engine and no clock: times are seconds from the start of a trial.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from knee.errors import RequestError, UserError
from knee.lab import records

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


# --- when requests come ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Arrival:
    """When requests come: all at once, at a constant rate, or as a Poisson process (`rate` in requests/s)."""

    kind: Literal["burst", "rate", "poisson"] = "burst"
    rate: float | None = None

    @classmethod
    def parse(cls, text: str) -> Arrival:
        """Read `burst`, `rate:R` or `poisson:R`. Raises `UserError`."""
        kind, colon, number = text.strip().partition(":")
        if kind == "burst" and not colon:
            return cls()
        if kind == "rate" and colon:
            return cls("rate", _rate(number, text))
        if kind == "poisson" and colon:
            return cls("poisson", _rate(number, text))
        raise UserError(f"unknown arrival {text!r}: use burst, rate:R or poisson:R, with R in requests/s")

    def __str__(self) -> str:
        return self.kind if self.rate is None else f"{self.kind}:{str(self.rate).removesuffix('.0')}"

    def times(self, requests: int, seed: int) -> tuple[float, ...]:
        """When each request is due, in seconds from the trial's start; the first one at 0."""
        if self.rate is None:
            return (0.0,) * requests
        if self.kind == "rate":
            return tuple(index / self.rate for index in range(requests))
        generator = random.Random(seed)
        gaps = [generator.expovariate(self.rate) for _ in range(requests - 1)]
        return tuple(accumulate(gaps, initial=0.0))


def _rate(number: str, text: str) -> float:
    try:
        rate = float(number)
    except ValueError:
        rate = math.nan
    if not (math.isfinite(rate) and rate > 0):
        raise UserError(f"the rate in {text!r} must be a number above 0, in requests/s")
    return rate


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
    """Requests of an experiment: request i asks `prompts[i % len(prompts)]` and is due at `times[i]`."""

    prompts: tuple[Prompt, ...]
    requests: int
    max_new_tokens: int
    arrival: Arrival = Arrival()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise UserError(f"the number of requests is {self.requests}: it must be at least 1")
        if self.times[-1] > _LONGEST_WORKLOAD_S:
            raise UserError(
                f"at {self.arrival} the last of {self.requests} requests comes after "
                f"{self.times[-1] / 3600:.3g} hours: use a higher rate or fewer requests"
            )

    @cached_property
    def times(self) -> tuple[float, ...]:
        """When each request is due, in seconds from the trial's start."""
        return self.arrival.times(self.requests, self.seed)

    def prompt(self, request: int) -> Prompt:
        """What a request asks; prompts are repeated in order where there are fewer than requests."""
        return self.prompts[request % len(self.prompts)]

    @property
    def prompt_tokens(self) -> list[int]:
        """Length of each request's prompt."""
        return [len(self.prompt(request).ids) for request in range(self.requests)]

    @property
    def longest(self) -> int:
        """Tokens of the longest request, prompt and output."""
        return max(self.prompt_tokens) + self.max_new_tokens

    @property
    def sha256(self) -> str:
        """Hash of all that decides what is asked and when; equal hashes mean equal work."""
        content = {
            "prompt_ids": [self.prompt(request).ids for request in range(self.requests)],
            "max_new_tokens": self.max_new_tokens,
            "arrival": str(self.arrival),
            "seed": self.seed,
        }
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def as_record(self) -> records.Workload:
        """What the record says about it: prompts once each, as texts if all of them were given as texts."""
        used = self.prompts[: self.requests]
        texts = [prompt.text for prompt in used if prompt.text is not None]
        return records.Workload(
            requests=self.requests,
            prompt_tokens=self.prompt_tokens,
            max_new_tokens=self.max_new_tokens,
            arrival=str(self.arrival),
            seed=self.seed,
            sha256=self.sha256,
            prompts=texts if len(texts) == len(used) else [list(prompt.ids) for prompt in used],
        )
