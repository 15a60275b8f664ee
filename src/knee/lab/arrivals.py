"""When requests come: the load of an experiment as a process in time. Knows no prompts, no engine and no clock.

Open loop: the times are decided before anything runs, from the options and the seed alone; users do not wait for each
other. Closed loop: so many users, each of whom sends the next request when the last one is answered. A trace is an
open loop whose times, prompts and lengths somebody wrote down.
"""

from __future__ import annotations

import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from knee.errors import UserError

ArrivalKind = Literal["burst", "rate", "poisson", "gamma", "closed", "trace"]

_FORMS = "burst, rate:R, poisson:R, gamma:R:CV (R in requests/s), closed:N (users) or trace:FILE"


@dataclass(frozen=True, slots=True)
class Arrival:
    """How requests come.

    `rate` is in requests/s. `variation` is the coefficient of variation of the gaps: 1 is a Poisson process, more is
    burstier. `users` make a closed loop. `file` is a trace, `replayed` its times in seconds.
    """

    kind: ArrivalKind = "burst"
    rate: float | None = None
    variation: float | None = None
    users: int | None = None
    file: str | None = None
    replayed: tuple[float, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Arrival:
        """Read one of the forms; a trace's file is read by `read_trace`. Raises `UserError`."""
        kind, *values = text.strip().split(":")
        match kind, values:
            case "burst", []:
                return cls()
            case (("rate" | "poisson"), [rate]):
                return cls("rate" if kind == "rate" else "poisson", _positive(rate, text, "rate", "in requests/s"))
            case "gamma", [rate, variation]:
                return cls("gamma", _positive(rate, text, "rate", "in requests/s"), _variation(variation, text))
            case "closed", [users]:
                return cls("closed", users=_users(users, text))
            case "trace", [_, *_] if text.strip() != "trace:":
                return cls("trace", file=text.strip().partition(":")[2])
        raise UserError(f"unknown arrival {text!r}: use {_FORMS}")

    def __str__(self) -> str:
        values = (self.rate, self.variation, self.users, self.file)
        return ":".join([self.kind, *(str(value).removesuffix(".0") for value in values if value is not None)])

    @property
    def open_loop(self) -> bool:
        """Whether the times are known before anything runs."""
        return self.kind != "closed"

    def times(self, requests: int, seed: int) -> tuple[float, ...] | None:
        """When each request is due, in seconds from the trial's start; the first at 0 but in a trace.

        None in a closed loop, where it depends on the answers.
        """
        match self.kind:
            case "closed":
                return None
            case "trace":
                return self.replayed[:requests]
            case "burst":
                return (0.0,) * requests
        assert self.rate is not None
        if self.kind == "rate":
            return tuple(index / self.rate for index in range(requests))
        generator = random.Random(seed)
        gaps = [self._gap(generator) for _ in range(requests - 1)]
        return tuple(accumulate(gaps, initial=0.0))

    def _gap(self, generator: random.Random) -> float:
        assert self.rate is not None
        if self.variation is None:
            return generator.expovariate(self.rate)
        # Of a gamma distribution with shape k the coefficient of variation is 1 / sqrt(k).
        return generator.gammavariate(self.variation**-2, self.variation**2 / self.rate)


BURST = Arrival()
"""All requests at once."""


def _positive(number: str, text: str, what: str, form: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"the {what} in {text!r} must be a number above 0, {form}")
    return value


def _variation(number: str, text: str) -> float:
    value = _positive(number, text, "CV", "like 2")
    if not 0.01 <= value <= 100:
        raise UserError(f"the CV in {text!r} must be from 0.01, which is nearly even, to 100")
    return value


def _users(number: str, text: str) -> int:
    if not number.isascii() or not number.isdecimal() or int(number) < 1:
        raise UserError(f"the users in {text!r} must be a whole number of at least 1")
    return int(number)


# --- traces ------------------------------------------------------------------------------------------------------

_LINE = '{"arrival": 0.5, "prompt_length": 200, "output_length": 50}, with "prompt" or "prompt_ids" instead of a length'


@dataclass(frozen=True, slots=True)
class TraceLine:
    """One request of a trace: due at `arrival` seconds; a text, token ids or only a number of tokens; what it makes."""

    arrival: float
    prompt: str | tuple[int, ...] | None
    prompt_length: int | None
    output_length: int | None


def read_trace(path: Path) -> tuple[TraceLine, ...]:
    """Read a JSONL trace, in order of arrival; times are moved so that the first is 0.

    Raises `UserError` with the number of the first bad line.
    """
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except OSError as error:
        raise UserError(f"cannot read the trace {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"the trace {path} is not UTF-8 text") from None
    found = [_line(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f"the trace {path} has no requests: write lines like {_LINE}")
    found.sort(key=lambda line: line.arrival)
    first = found[0].arrival
    return tuple(TraceLine(line.arrival - first, line.prompt, line.prompt_length, line.output_length) for line in found)


def _line(text: str, where: str) -> TraceLine:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{where}: the line is no JSON object: write {_LINE}")
    given = [name for name in ("prompt", "prompt_ids", "prompt_length") if name in value]
    if len(given) != 1:
        raise UserError(f"{where}: one of prompt, prompt_ids and prompt_length must be there: write {_LINE}")
    arrival = value.get("arrival")
    if isinstance(arrival, bool) or not isinstance(arrival, int | float) or not 0 <= arrival <= sys.float_info.max:
        raise UserError(f"{where}: `arrival` must be seconds, a number of at least 0: write {_LINE}")
    length = _length(value, "prompt_length", where) if "prompt_length" in value else None
    return TraceLine(float(arrival), _prompt(value, where), length, _length(value, "output_length", where, False))


def _prompt(value: dict[str, Any], where: str) -> str | tuple[int, ...] | None:
    if "prompt" in value:
        if not isinstance(value["prompt"], str):
            raise UserError(f"{where}: `prompt` is not a text: write {_LINE}")
        return str(value["prompt"])
    if "prompt_ids" in value:
        ids: Sequence[Any] = value["prompt_ids"]
        if not isinstance(ids, list) or any(type(token) is not int for token in ids):
            raise UserError(f"{where}: `prompt_ids` is not a list of whole numbers: write {_LINE}")
        return tuple(ids)
    return None


def _length(value: dict[str, Any], name: str, where: str, needed: bool = True) -> int | None:
    length = value.get(name)
    if length is None and not needed:
        return None
    if type(length) is not int or length < 1:
        raise UserError(f"{where}: `{name}` must be a whole number of at least 1: write {_LINE}")
    return length
