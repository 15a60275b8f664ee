"""knee beside the engines that users know: the same model, prompts and lengths, on one machine, in one run.

    python -m benchmarks.peers --batch-sizes 1,8 --rounds 3
    python -m benchmarks.peers --engines knee-int8,llama.cpp-q8_0 \\
        --python llama.cpp=/path/to/python --model-of llama.cpp-q8_0=model-q8_0.gguf

Every engine lives in a process of its own and waits for orders, so that only one works at a time; rounds are
interleaved (A B, B A, …), so that a drift of the machine meets all of them. An engine runs the requests in groups of
B until the last of the group is done. A second table has the time to the first token of long prompts.

`--python` and `--model-of` take an engine's name, for all of its rows, or a row's name, for that row.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from benchmarks.engines import split_name

PROMPTS = [
    f"Q: Explain in one sentence why {topic} matters for an inference server.\nA:"
    for topic in ("batching", "the KV cache", "memory bandwidth", "a wait window")
]


# --- engines as the parent sees them -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Pass:
    """One engine's run over all prompts: seconds of each group, and the new tokens of each prompt."""

    seconds: list[float]
    tokens: list[list[int]]


class Peer(Protocol):
    """An engine that takes orders."""

    name: str

    def run(self, prompts: list[list[int]], batch_size: int, new_tokens: int) -> Pass:
        """One pass over the prompts in groups of `batch_size`."""


@dataclass
class PeerProcess:
    """An engine's process; `about` is what it says of itself."""

    name: str
    process: subprocess.Popen[str]
    about: str = ""

    @classmethod
    def start(cls, name: str, model: str, python: str, threads: int) -> PeerProcess:
        command = [python, "-m", "benchmarks.engines", name, model, str(threads)]
        peer = cls(name, subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        peer.about = peer._read()["about"]
        return peer

    def run(self, prompts: list[list[int]], batch_size: int, new_tokens: int) -> Pass:
        assert self.process.stdin
        order = {"prompts": prompts, "batch_size": batch_size, "new_tokens": new_tokens}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return Pass(**self._read())

    def stop(self) -> None:
        """Let the process end: no more orders."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


# --- measuring ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """What a peer did: a value a round, in the order of the rounds, and its tokens."""

    name: str
    values: list[float]
    tokens: list[list[int]]


def measure(
    peers: Sequence[Peer],
    prompts: list[list[int]],
    batch_size: int,
    new_tokens: int,
    rounds: int,
    value: Callable[[Pass], float],
) -> list[Measured]:
    """Every peer `rounds` times over the prompts, in turns, after one group to warm up."""
    measured = [Measured(peer.name, [], []) for peer in peers]
    for peer in peers:
        peer.run(prompts[:batch_size], batch_size, new_tokens)
    pairs = list(zip(peers, measured, strict=True))
    for turn in range(rounds):
        for peer, results in pairs if turn % 2 == 0 else reversed(pairs):
            done = peer.run(prompts, batch_size, new_tokens)
            if any(len(tokens) != new_tokens for tokens in done.tokens) or len(done.tokens) != len(prompts):
                raise RuntimeError(f"{peer.name} did not make {new_tokens} tokens for each of {len(prompts)} prompts")
            results.values.append(value(done))
            results.tokens[:] = done.tokens
    return measured


def tokens_per_second(done: Pass) -> float:
    return sum(map(len, done.tokens)) / sum(done.seconds)


def milliseconds(done: Pass) -> float:
    """The median group's time."""
    return statistics.median(done.seconds) * 1e3


# --- tables ------------------------------------------------------------------------------------------------------


def faster_by(ours: Measured, theirs: Measured, smaller_wins: bool) -> float:
    """The median over rounds: the two values of a round were taken close to each other."""
    pairs = zip(ours.values, theirs.values, strict=True)
    return statistics.median(b / a if smaller_wins else a / b for a, b in pairs)


def baselines(names: Iterable[str]) -> list[str]:
    """The rows that the others are compared with: those of knee, or the first where knee takes no part."""
    names = list(names)
    return [name for name in names if split_name(name)[0] == "knee"] or names[:1]


def header(names: Sequence[str], unit: str) -> list[str]:
    """The columns of `rows`."""
    ratios = [f"{name} faster by" for name in baselines(names)]
    return ["engine", unit, "lowest", "highest", *ratios, f"same as {names[0]}"]


def rows(measured: Sequence[Measured], smaller_wins: bool = False) -> list[list[str]]:
    """A row a peer: median, spread, each knee row's ratio to it, and how many requests have the first row's tokens."""
    by_name = {each.name: each for each in measured}
    ours = [by_name[name] for name in baselines(by_name)]
    return [
        [
            each.name,
            f"{statistics.median(each.values):.1f}",
            f"{min(each.values):.1f}",
            f"{max(each.values):.1f}",
            *("" if our is each else f"{faster_by(our, each, smaller_wins):.2f}x" for our in ours),
            f"{sum(a == b for a, b in zip(each.tokens, measured[0].tokens, strict=True))}/{len(each.tokens)}",
        ]
        for each in measured
    ]


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """A table whose first line is its header; it can be read as it is and pasted into a document."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * width for width in widths]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in (lines[0], rule)]
    padded += [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)


# --- the command line --------------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, checked: lists split, names known."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m", help="as knee takes it; prompts are made with its tokenizer")
    parser.add_argument("--engines", default="knee,transformers", metavar="NAME,…", help="knee-int8, llama.cpp, …")
    parser.add_argument("--batch-sizes", default="1,8", metavar="B,…")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--prefill", type=int, default=512, help="tokens of the prompts of the second table; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--threads", type=int, default=cores(), help="of every engine; default: the cores (%(default)s)"
    )
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--model-of", action="append", default=[], metavar="NAME=PATH")
    options = parser.parse_args(arguments)
    try:
        options.engines = options.engines.split(",")
        options.batch_sizes = [int(size) for size in options.batch_sizes.split(",")]
        for name in options.engines:
            split_name(name)
        options.python = assignments(options.python)
        options.model_of = assignments(options.model_of)
    except ValueError as error:
        parser.error(str(error))
    if len(set(options.engines)) < len(options.engines):
        parser.error("an engine is named twice: give its rows different names, such as knee-int8 and knee-float32")
    return options


def assignments(items: Iterable[str]) -> dict[str, str]:
    """NAME=VALUE, taken apart."""
    pairs = [item.partition("=") for item in items]
    for name, _, value in pairs:
        split_name(name)
        if not value:
            raise ValueError(f"{name!r}: give NAME=PATH")
    return {name: value for name, _, value in pairs}


def meant_for(name: str, given: dict[str, str], otherwise: str) -> str:
    """What was said of this row, or of its engine, or of neither."""
    return given.get(name, given.get(split_name(name)[0], otherwise))


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def encode_prompts(model: str, requests: int, prefill: int) -> tuple[str, list[list[int]], list[list[int]]]:
    """The model's path, the short prompts, and a long one for each text: all texts in turn, beginning with that one."""
    from knee.weights.catalog import resolve
    from knee.weights.load import open_checkpoint
    from knee.weights.tokenizer import load_tokenizer

    path = str(resolve(model))
    tokenizer = load_tokenizer(open_checkpoint(path))
    if tokenizer is None:
        sys.exit(f"{path} has no tokenizer")
    encoded = [tokenizer.encode(text) for text in PROMPTS]
    long = []
    for i in range(len(encoded)):
        turn = [token for prompt in encoded[i:] + encoded[:i] for token in prompt]
        long.append((turn * (prefill // len(turn) + 1))[:prefill])
    return path, [encoded[i % len(encoded)] for i in range(requests)], long


def start(options: argparse.Namespace, path: str) -> list[PeerProcess]:
    """The engines that start; those that do not are told of and left out."""
    peers = []
    for name in options.engines:
        model = meant_for(name, options.model_of, path)
        try:
            peer = PeerProcess.start(name, model, meant_for(name, options.python, sys.executable), options.threads)
        except (RuntimeError, OSError) as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        print(f"{name}: {peer.about}", flush=True)
        peers.append(peer)
    return peers


def main() -> int:
    """Start the peers, measure, print two tables. 1 if an engine was left out."""
    options = parse()
    path, prompts, long = encode_prompts(options.model, options.requests, options.prefill)
    peers = start(options, path)
    if not peers:
        return 1
    names = [peer.name for peer in peers]
    print(f"\n{options.model}, {options.rounds} rounds, {options.threads} threads")
    lines = [["batch", *header(names, "tokens/s")]]
    for size in options.batch_sizes:
        measured = measure(peers, prompts, size, options.new_tokens, options.rounds, tokens_per_second)
        lines += [[str(size), *row] for row in rows(measured)]
    print(f"{options.requests} requests x {options.new_tokens} new tokens:\n\n{markdown(lines)}\n", flush=True)
    if options.prefill:
        measured = measure(peers, long, 1, 1, options.rounds, milliseconds)
        table = markdown([header(names, "ms"), *rows(measured, smaller_wins=True)])
        print(f"Time to the first token, prompts of {options.prefill} tokens, median of {len(long)}:\n\n{table}")
    for peer in peers:
        peer.stop()
    return int(len(peers) < len(options.engines))


if __name__ == "__main__":
    sys.exit(main())
