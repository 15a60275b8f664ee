"""From the name of a model to the float32 weights of its program. Knows checkpoints and programs, no file formats.

Reading is a pass over the file and a pass over the result. Tensors are read by a few threads, each of which needs one
tensor's stored bytes and small chunks beside the result (NumPy lets go of the interpreter's lock while it works).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import psutil
from numpy.typing import NDArray

from knee.errors import ModelLoadError, OutOfMemory
from knee.program import Program, WeightSpec
from knee.weights.checkpoint import Checkpoint, StoredTensor

Weights = dict[str, NDArray[np.float32]]

# What a program may leave: buffers of old checkpoints, which follow from the config, and an output matrix, which a
# program with tied embeddings does not ask for.
_UNNEEDED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", "lm_head.weight")
# Sizes in configs that a program's size follows from: of Llama and its kin, and of GPT-2.
_SIZES = {
    *("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size"),
    *("head_dim", "num_attention_heads", "num_key_value_heads"),
    *("n_layer", "n_embd", "n_inner", "n_head"),
}


def open_checkpoint(spec: str) -> Checkpoint:
    """Find a model by alias, hub id, folder or `.gguf` file (fetching it if need be), and open it.

    Raises `ModelLoadError`, or `DownloadError` where it is not here and cannot be fetched.
    """
    from knee.weights import catalog

    path = catalog.resolve(spec)
    checkpoint = _open(path, catalog.model_name(spec, path), spec)
    _check_sizes(checkpoint)
    return checkpoint


def load_weights(program: Program, checkpoint: Checkpoint, threads: int | None = None) -> Weights:
    """All weights of a program as C-contiguous float32, by the program's names.

    Weights that share a stored tensor (a fused q, k, v) may be views of one array. Raises `ModelLoadError` where
    tensors are missing, left over or of other shapes than the program's, `OutOfMemory` before anything is allocated,
    `NumericsError` for NaN and infinity.
    """
    by_source = _by_source(program.weights)
    _check_names(by_source, checkpoint)
    for source, specs in by_source.items():
        _check_shape(source, checkpoint.tensors[source], specs.values())
    _check_memory(program)
    with ThreadPoolExecutor(threads or _cores(), thread_name_prefix="load") as pool:
        parts = pool.map(lambda item: _read(checkpoint.tensors[item[0]], item[1]), by_source.items())
        read = {name: weight for part in parts for name, weight in part.items()}
    return {name: read[name] for name in program.weights}


def available_memory() -> int:
    """Bytes that this process may still allocate: of the machine, or of its container where that has less."""
    free = psutil.virtual_memory().available
    limit, used = _cgroup_bytes("memory.max"), _cgroup_bytes("memory.current")
    if limit is None or used is None:
        return free
    return min(free, max(0, limit - used + _reclaimable()))


def _open(path: Path, name: str, source: str) -> Checkpoint:
    if path.is_dir():
        from knee.weights.folder import open_folder

        return open_folder(path, name, source)
    from knee.weights.gguf import open_gguf

    return open_gguf(path, name, source)


def _check_sizes(checkpoint: Checkpoint) -> None:
    """A damaged config must not make a program of a billion layers: no size in it exceeds the number of weights."""
    weights = sum(prod(tensor.shape) for tensor in checkpoint.tensors.values())
    for key in _SIZES & checkpoint.config.keys():
        size = checkpoint.config[key]
        if isinstance(size, int) and size > weights:
            raise ModelLoadError(
                f"{checkpoint.source}: the config has {key} {size}, but the files hold {weights} weights in all"
            )


def _by_source(weights: Mapping[str, WeightSpec]) -> dict[str, dict[str, WeightSpec]]:
    """The program's weights by the stored tensor they come from, the largest first, so that threads end together."""
    grouped: dict[str, dict[str, WeightSpec]] = {}
    for name, spec in weights.items():
        grouped.setdefault(spec.source, {})[name] = spec
    return dict(sorted(grouped.items(), key=lambda item: -sum(spec.size for spec in item[1].values())))


def _check_names(by_source: Mapping[str, object], checkpoint: Checkpoint) -> None:
    missing = sorted(by_source.keys() - checkpoint.tensors.keys())
    if missing:
        raise ModelLoadError(f"{checkpoint.source}: {_listed(missing)} missing in the weights; its files do not fit")
    unused = checkpoint.tensors.keys() - by_source.keys()
    left_over = sorted(name for name in unused if not name.endswith(_UNNEEDED))
    if left_over:
        raise ModelLoadError(
            f"{checkpoint.source}: the weights hold {_listed(left_over)} that the architecture has no use for; "
            "it would run as another model"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:3])
    return f"{len(names)} tensors ({shown}{', …' if len(names) > 3 else ''})"


def _check_shape(source: str, stored: StoredTensor, specs: Iterable[WeightSpec]) -> None:
    """The stored tensor is exactly what the weights made from it take up."""
    from knee.weights.tensor import SUPPORTED

    if stored.dtype not in SUPPORTED:
        raise ModelLoadError(f"tensor {source} is {stored.dtype}; supported: {', '.join(SUPPORTED)}")
    for spec in specs:
        outputs = spec.shape[0] if spec.part is None else max(_stop(other) for other in specs)
        needed = (outputs, *spec.shape[1:])
        if spec.transposed:
            needed = needed[::-1]
        if tuple(stored.shape) != needed:
            raise ModelLoadError(
                f"tensor {source} has the shape {tuple(stored.shape)}, but the config asks for {needed}"
            )


def _stop(spec: WeightSpec) -> int:
    return spec.part[1] if spec.part else spec.shape[0]


def _check_memory(program: Program) -> None:
    needed, there = 4 * program.parameters, available_memory()
    if needed > there:
        raise OutOfMemory(
            f"the weights need {needed / 2**30:.2f} GiB in float32 and {there / 2**30:.2f} GiB of memory are free: "
            "close other programs or use a smaller model"
        )


def _read(stored: StoredTensor, specs: Mapping[str, WeightSpec]) -> Weights:
    """The weights made from one stored tensor."""
    whole = stored.read()
    return {name: _cut(whole, spec) for name, spec in specs.items()}


def _cut(whole: NDArray[np.float32], spec: WeightSpec) -> NDArray[np.float32]:
    outputs_first = whole.T if spec.transposed else whole
    part = outputs_first if spec.part is None else outputs_first[slice(*spec.part)]
    return np.ascontiguousarray(part)


def _cores() -> int:
    """Cores that this process may use. `os.sched_getaffinity` exists on Linux only."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cgroup_bytes(file: str) -> int | None:
    """A number from the container's control group (version 2); None where there is none, or no limit ("max")."""
    try:
        text = Path("/sys/fs/cgroup", file).read_text()
    except OSError:
        return None
    return int(text) if text.strip().isdigit() else None


def _reclaimable() -> int:
    """Bytes of cached files, which the kernel counts as used but gives up on demand."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
