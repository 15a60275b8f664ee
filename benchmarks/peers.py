"""knee beside the engines that users know: the same model, prompts and lengths, on one machine, in one run.

    python -m benchmarks.peers --batch-sizes 1,8 --rounds 3

Every engine lives in a process of its own and waits for orders, so that only one works at a time; rounds are
interleaved (A B, B A, …), so that a drift of the machine meets all of them. An engine runs the requests in groups of
B until the last of the group is done. `--python transformers=/path/to/python` takes an engine's environment from
elsewhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Generate = Callable[[list[list[int]], int], list[list[int]]]

PROMPTS = [
    f"Q: Explain in one sentence why {topic} matters for an inference server.\nA:"
    for topic in ("batching", "the KV cache", "memory bandwidth", "a wait window")
]


# --- engines, each in its own process ----------------------------------------------------------------------------


def load_knee(model: str) -> Generate:
    """knee, static batches."""
    from knee import LLM, SamplingParams

    llm = LLM.load(model)

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        requests = llm.generate(prompts, params, policy="static", max_batch_size=len(prompts))
        return [request.output for request in requests]

    return generate


def load_transformers(model: str) -> Generate:
    """transformers' generate() in float32, left padding."""
    import torch
    from transformers import AutoModelForCausalLM

    path = Path(model)
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where).eval()

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        limits: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        with torch.no_grad():
            out = loaded.generate(ids, attention_mask=mask, pad_token_id=0, eos_token_id=None, **limits)
        return [row[width:].tolist() for row in out]

    return generate


ENGINES: dict[str, Callable[[str], Generate]] = {"knee": load_knee, "transformers": load_transformers}


def serve(engine: str, model: str) -> None:
    """Child: load, then answer one JSON line for each JSON line."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever an engine prints stays out of the answers
    generate = ENGINES[engine](model)
    print(json.dumps("ready"), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        prompts, size = order["prompts"], order["batch_size"]
        started = time.perf_counter()
        groups = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        tokens = [out for group in groups for out in generate(group, order["new_tokens"])]
        answer = {"seconds": time.perf_counter() - started, "tokens": tokens}
        print(json.dumps(answer), file=answers, flush=True)


# --- the parent --------------------------------------------------------------------------------------------------


@dataclass
class Peer:
    """An engine's process."""

    name: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, name: str, model: str, python: str) -> Peer:
        command = [python, "-m", "benchmarks.peers", "--serve", name, "--model", model]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        peer = cls(name, process)
        if peer._read() != "ready":
            raise RuntimeError(f"{name} did not start")
        return peer

    def run(self, prompts: list[list[int]], batch_size: int, new_tokens: int) -> dict[str, Any]:
        """Seconds and tokens of one pass over the prompts."""
        assert self.process.stdin
        order = {"prompts": prompts, "batch_size": batch_size, "new_tokens": new_tokens}
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = self._read()
        return answer

    def _read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended with exit code {self.process.wait()}")
        return json.loads(line)


def measure(peers: Sequence[Peer], prompts: list[list[int]], size: int, options: argparse.Namespace) -> list[Any]:
    """A row a peer: name, median tokens/s, spread, and whether its tokens are the first peer's."""
    seconds: dict[str, list[float]] = {peer.name: [] for peer in peers}
    tokens: dict[str, Any] = {}
    for peer in peers:
        peer.run(prompts[:size], size, 4)  # warm
    for turn in range(options.rounds):
        for peer in peers if turn % 2 == 0 else reversed(peers):
            answer = peer.run(prompts, size, options.new_tokens)
            seconds[peer.name].append(answer["seconds"])
            tokens[peer.name] = answer["tokens"]
    made = len(prompts) * options.new_tokens
    rates = {name: [made / s for s in values] for name, values in seconds.items()}
    first = peers[0].name
    return [
        (name, statistics.median(rate), min(rate), max(rate), _equal(tokens[name], tokens[first]))
        for name, rate in rates.items()
    ]


def _equal(left: list[list[int]], right: list[list[int]]) -> str:
    return f"{sum(a == b for a, b in zip(left, right, strict=True))}/{len(right)}"


def main() -> None:
    """Start the peers, run every batch size, print one table."""
    options = _options()
    if options.serve:
        return serve(options.serve, options.model)
    from knee.weights.catalog import resolve
    from knee.weights.load import open_checkpoint
    from knee.weights.tokenizer import load_tokenizer

    path = str(resolve(options.model))
    tokenizer = load_tokenizer(open_checkpoint(path))
    assert tokenizer
    prompts = [tokenizer.encode(PROMPTS[i % len(PROMPTS)]) for i in range(options.requests)]
    pythons = dict(item.split("=", 1) for item in options.python)
    peers = [Peer.start(name, path, pythons.get(name, sys.executable)) for name in options.engines.split(",")]
    title = f"{options.model}, {options.requests} requests x {options.new_tokens} new tokens, {options.rounds} rounds"
    table = Table("batch", "engine", "tokens/s", "lowest", "highest", "ratio to knee", "same tokens", title=title)
    for size in map(int, options.batch_sizes.split(",")):
        rows = measure(peers, prompts, size, options)
        for name, rate, low, high, same in rows:
            cells = (f"{rate:.1f}", f"{low:.1f}", f"{high:.1f}", f"{rate / rows[0][1]:.2f}")
            table.add_row(str(size), name, *cells, same)
    Console(width=110).print(table)
    return None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--engines", default="knee,transformers")
    parser.add_argument("--batch-sizes", default="1,8")
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--python", action="append", default=[], metavar="ENGINE=PATH")
    parser.add_argument("--serve", choices=list(ENGINES), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
