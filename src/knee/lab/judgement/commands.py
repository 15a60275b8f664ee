"""A recommended setting as something to paste, for each system that has a setting that corresponds.

vLLM and llama.cpp batch continuously and bound the requests that run together; Triton Inference Server forms a batch
within a delay, which is dynamic batching. Nobody else fills batches without a deadline, which is static batching.
"""

from __future__ import annotations

import shlex

from knee.lab.records import Record
from knee.weights.catalog import CATALOG, GgufEntry


def commands(record: Record, policy: str, max_batch_size: int, max_wait_ms: float | None) -> dict[str, str]:
    """By the name of the system."""
    found = {"knee": _knee(record, policy, max_batch_size, max_wait_ms)}
    if policy in ("continuous", "single"):
        size = max_batch_size if policy == "continuous" else 1
        found["vLLM"] = f"vllm serve {_hub_name(record)} --max-num-seqs {size}"
        found["llama.cpp server"] = _llama_cpp(record, size)
    if policy == "dynamic":
        found["Triton Inference Server"] = _triton(max_batch_size, max_wait_ms or 0.0)
    return found


def _knee(record: Record, policy: str, size: int, wait: float | None) -> str:
    options = record.options
    parts = ["knee", "sweep", "--model", str(options.get("model") or record.model.name), "--policies", policy]
    parts += ["--batch-sizes", str(size)] if policy != "single" else []
    parts += ["--wait-ms", f"{wait:g}"] if wait is not None else []
    parts += [word for name, usual in _USUAL.items() for word in _option(name, options.get(name), usual)]
    return shlex.join(parts)


# Options of a sweep that make it another experiment, and what they are if nobody says otherwise.
_USUAL: dict[str, object] = {
    "arrival": None,
    "requests": None,
    "max_new_tokens": 32,
    "prompt": [],
    "prompt_ids": [],
    "prompts_file": None,
    "device": "auto",
    "dtype": "auto",
    "threads": None,
    "kv_cache": "on",
    "slo": None,
}


def _option(name: str, value: object, usual: object) -> list[str]:
    if value is None or value == usual:
        return []
    flag = f"--{name.replace('_', '-')}"
    values = value if isinstance(value, list) else [value]
    texts = [",".join(map(str, one)) if isinstance(one, list) else str(one) for one in values]
    return [word for one in texts for word in (flag, one)]


def _hub_name(record: Record) -> str:
    """What vLLM can load: a hub id or a folder; of a single file of weights the name has to be filled in."""
    name = str(record.options.get("model") or record.model.name)
    entry = CATALOG.get(name)
    if name in _ORIGINALS:
        return _ORIGINALS[name]
    if isinstance(entry, GgufEntry) or name.endswith(".gguf"):
        return "MODEL"
    return shlex.quote(entry.repo if entry else name)


# What a file of an alias was made from, for who reads no GGUF.
_ORIGINALS = {"smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}


def _llama_cpp(record: Record, size: int) -> str:
    name = str(record.options.get("model") or record.model.name)
    entry = CATALOG.get(name)
    file = entry.file if isinstance(entry, GgufEntry) else name if name.endswith(".gguf") else "MODEL.gguf"
    context = max(record.workload.prompt_tokens, default=0) + record.workload.max_new_tokens
    # Its context is shared by all slots.
    return f"llama-server -m {shlex.quote(file)} --parallel {size} --ctx-size {size * _rounded(context)}"


def _rounded(tokens: int) -> int:
    return -(-tokens // 256) * 256


def _triton(size: int, wait_ms: float) -> str:
    return f"max_batch_size: {size}\ndynamic_batching {{\n  max_queue_delay_microseconds: {round(wait_ms * 1000)}\n}}"
