"""The engines of the side-by-side benchmark, each behind one function: prompts in, tokens out.

`serve` is what runs in an engine's process, under the python that has the engine: nothing else may be imported at the
top here, neither knee nor NumPy. A row's name is an engine's, or an engine's and a word after a hyphen: `knee-int8`,
`llama.cpp-q8_0`. The word is the weight type for knee and transformers; for the others the model's file decides and
the word is only a name.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

# A group of prompts and a number: exactly so many new tokens for each of them, all requests together, greedy.
Generate = Callable[[list[list[int]], int], list[list[int]]]


@dataclass(frozen=True)
class Loaded:
    """An engine with its model; `about` says what runs: versions and types."""

    generate: Generate
    about: str


def load_knee(model: str, variant: str, threads: int) -> Loaded:
    """knee, static batches."""
    from knee import LLM, SamplingParams

    llm = LLM.load(model, dtype=variant or "auto", threads=threads)

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        params = SamplingParams(max_new_tokens=new_tokens, ignore_eos=True)
        requests = llm.generate(prompts, params, policy="static", max_batch_size=len(prompts))
        return [request.output for request in requests]

    return Loaded(generate, f"knee {version('knee')}, device {llm.device.name}, {llm.device.dtype}")


def load_transformers(model: str, variant: str, threads: int) -> Loaded:
    """transformers' generate(), in float32 where nothing else is said, left padding."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    path = Path(model)
    where = {"gguf_file": path.name} if path.suffix == ".gguf" else {}
    folder = path.parent if where else path
    dtype = getattr(torch, variant or "float32")
    loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, **where).eval()

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        limits: dict[str, Any] = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
        with torch.no_grad():
            out = loaded.generate(ids, attention_mask=mask, pad_token_id=0, eos_token_id=None, **limits)
        return [row[width:].tolist() for row in out]

    return Loaded(generate, f"transformers {version('transformers')}, torch {torch.__version__}, {loaded.dtype}")


def load_openvino(model: str, variant: str, threads: int) -> Loaded:
    """OpenVINO GenAI, continuous batching over a paged cache: on CPUs its faster pipeline, at batch 1 too."""
    import numpy as np
    import openvino
    import openvino_genai as genai

    del variant  # the folder decides; the computing type and the cache's are the engine's choice for the processor
    scheduler = genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False  # prompts come again in every round and shall be computed again
    scheduler.max_num_batched_tokens = 1 << 20  # a prompt in one piece; the default cuts it after 256 tokens
    scheduler.max_num_seqs = 1 << 10
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", {"INFERENCE_NUM_THREADS": threads})

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        limits = genai.GenerationConfig()
        limits.max_new_tokens = limits.min_new_tokens = new_tokens
        limits.ignore_eos, limits.do_sample = True, False
        ids = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = pipeline.generate(ids, [limits] * len(ids))
        return [list(result.m_generation_ids[0]) for result in results]

    return Loaded(generate, f"openvino-genai {genai.__version__}, {Path(model).name}")


def load_llama_cpp(model: str, variant: str, threads: int) -> Loaded:
    """llama.cpp through its batch interface: a sequence for each request, one decode for each step."""
    import llama_cpp

    del variant  # the file decides
    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)
    llama_cpp.llama_backend_init()
    settings = llama_cpp.llama_model_default_params()
    settings.n_gpu_layers = 0  # the other peers compute on the processor too
    weights = llama_cpp.llama_model_load_from_file(model.encode(), settings)
    if not weights:
        sys.exit(f"llama.cpp cannot load {model}")
    session: list[LlamaSession] = []  # one at most; it grows: empty cells cost no time

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        count, length = len(prompts), max(map(len, prompts)) + new_tokens
        if not session or count > session[0].count or length > session[0].length:
            if session:
                old = session.pop()
                old.close()
                count, length = max(count, old.count), max(length, old.length)
            session.append(LlamaSession(llama_cpp, weights, count, length, threads))
        return session[0].run(prompts, new_tokens)

    return Loaded(generate, f"llama-cpp-python {version('llama-cpp-python')}, {Path(model).name}")


class LlamaSession:
    """A llama.cpp context for up to `count` sequences of up to `length` tokens."""

    def __init__(self, lib: Any, weights: Any, count: int, length: int, threads: int) -> None:
        self.lib, self.count, self.length = lib, count, length
        settings = lib.llama_context_default_params()  # flash attention where it can, cache in float16
        settings.n_ctx, settings.n_seq_max = count * length, count
        settings.n_batch = count * length
        settings.kv_unified = True  # prompts of different lengths go as one batch; a step costs the same
        settings.n_threads = settings.n_threads_batch = threads
        settings.no_perf = True
        self.context = lib.llama_init_from_model(weights, settings)
        if not self.context:
            raise MemoryError(f"llama.cpp makes no context of {count} x {length} tokens")
        self.memory = lib.llama_get_memory(self.context)
        self.batch = lib.llama_batch_init(count * length, 0, 1)
        self.vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(weights))

    def close(self) -> None:
        """Free the memory. Not for the end of the process: by then parts of the library may be gone."""
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)

    def run(self, prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        """Prefill of all prompts at once, then a token for each of them a step."""
        self.lib.llama_memory_clear(self.memory, False)
        outputs: list[list[int]] = [[] for _ in prompts]
        entries = [
            (token, position, number, position == len(prompt) - 1)
            for number, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        for step in range(new_tokens):
            tokens = self._step(entries, len(prompts))
            for output, token in zip(outputs, tokens, strict=True):
                output.append(token)
            entries = [(token, len(prompts[number]) + step, number, True) for number, token in enumerate(tokens)]
        return outputs

    def _step(self, entries: Iterable[tuple[int, int, int, bool]], wanted: int) -> list[int]:
        """Decode (token, position, sequence, wants logits); the likeliest next token of those that want one."""
        import numpy as np

        batch = self.batch
        batch.n_tokens = 0
        for i, (token, position, sequence, logits) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, logits
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.n_tokens = i + 1
        if status := self.lib.llama_decode(self.context, batch):
            raise RuntimeError(f"llama_decode ended with {status}")
        rows = np.ctypeslib.as_array(self.lib.llama_get_logits(self.context), (wanted, self.vocab))
        tokens: list[int] = rows.argmax(axis=1).tolist()
        return tokens


ENGINES: dict[str, Callable[[str, str, int], Loaded]] = {
    "knee": load_knee,
    "transformers": load_transformers,
    "llama.cpp": load_llama_cpp,
    "openvino": load_openvino,
}


def split_name(name: str) -> tuple[str, str]:
    """A row's name taken apart: the engine and the word after the hyphen, "" if there is none."""
    engine, _, variant = name.partition("-")
    if engine not in ENGINES:
        raise ValueError(
            f"{name!r} names no engine; there are {', '.join(ENGINES)}, each alone or with -WORD behind it"
        )
    return engine, variant


def serve(name: str, model: str, threads: int) -> None:
    """Load, then answer one JSON line for each JSON line: the seconds of each group and all tokens."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever an engine prints stays out of the answers
    engine, variant = split_name(name)
    loaded = ENGINES[engine](model, variant, threads)
    print(json.dumps({"about": loaded.about}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        prompts, size = order["prompts"], order["batch_size"]
        seconds: list[float] = []
        tokens: list[list[int]] = []
        for group in (prompts[i : i + size] for i in range(0, len(prompts), size)):
            started = time.perf_counter()
            tokens += loaded.generate(group, order["new_tokens"])
            seconds.append(time.perf_counter() - started)
        print(json.dumps({"seconds": seconds, "tokens": tokens}), file=answers, flush=True)


def main() -> None:
    """An engine's process; the benchmark starts it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engines", description=__doc__.split("\n")[0])
    parser.add_argument("name")
    parser.add_argument("model")
    parser.add_argument("threads", type=int)
    options = parser.parse_args()
    serve(options.name, options.model, options.threads)


if __name__ == "__main__":
    main()
