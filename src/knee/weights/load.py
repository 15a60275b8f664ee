"""From the name of a model to the checked weights of its program. Knows checkpoints and programs, no file formats.

Everything that can be wrong with a model's files is found before a weight is read, but for numbers that are no numbers:
these are found as a device reads them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import psutil

from knee.devices.base import STORED, FloatArray, StoredWeight, Weight, WeightPlan
from knee.errors import ModelLoadError, OutOfMemory
from knee.program import Program, WeightSpec
from knee.weights.checkpoint import Checkpoint
from knee.weights.tensor import QUANTIZED, SUPPORTED, MappedTensor

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


def find_weights(program: Program, checkpoint: Checkpoint) -> dict[str, Weight]:
    """All weights of a program by its names, checked and not yet read.

    Raises `ModelLoadError` where tensors are missing, left over or of other shapes than the program's.
    """
    by_source = _by_source(program.weights)
    _check_names(by_source, checkpoint)
    for source, specs in by_source.items():
        _check_shape(source, checkpoint.tensors[source], specs)
    return {name: FileWeight(spec, checkpoint.tensors[spec.source]) for name, spec in program.weights.items()}


def check_memory(plan: WeightPlan, on_device: int | None = None) -> None:
    """Raise `OutOfMemory` where weights that a device would keep so do not fit; nothing is allocated before.

    `on_device` is what is free there, for a device with memory of its own.
    """
    needed, there = plan.bytes, available_memory() if on_device is None else on_device
    if needed > there:
        whose = "memory" if on_device is None else "the device's memory"
        raise OutOfMemory(
            f"the weights need {needed / 2**30:.2f} GiB in {plan.dtype} and {there / 2**30:.2f} GiB of {whose} are "
            "free: close other programs or use a smaller model"
        )


@dataclass(frozen=True, slots=True)
class FileWeight:
    """A weight in a file; a device sees it as `devices.base.Weight`."""

    spec: WeightSpec
    tensor: MappedTensor

    @property
    def storage(self) -> str:
        """How the file keeps it."""
        return self.tensor.dtype

    def read(self) -> FloatArray:
        """In float32, C-contiguous. `NumericsError` where it is not finite."""
        tensor = self.tensor
        if self.spec.part is not None:
            tensor = tensor.cut(*self.spec.part, axis=1 if self.spec.transposed else 0)
        values = tensor.read()
        return np.ascontiguousarray(values.T if self.spec.transposed else values)

    def stored(self) -> StoredWeight:
        """As the file has it; in float32 where a device could not read that."""
        if self.storage not in STORED:
            values, (rows, columns) = self.read(), _matrix(self.spec.shape)
            return StoredWeight(values.view(np.uint8).reshape(-1), "F32", rows, columns, False, 0, rows)
        rows, columns = _matrix(self.tensor.shape)
        begin, end = self.spec.part or (0, self.spec.shape[0])
        return StoredWeight(self.tensor.stored(), self.storage, rows, columns, self.spec.transposed, begin, end)

    def release(self) -> None:
        """Let the file's pages go."""
        self.tensor.release()


def _matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    return shape[0], prod(shape[1:])


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


def _by_source(weights: Mapping[str, WeightSpec]) -> dict[str, list[WeightSpec]]:
    """The program's weights by the stored tensor they come from."""
    grouped: dict[str, list[WeightSpec]] = {}
    for spec in weights.values():
        grouped.setdefault(spec.source, []).append(spec)
    return grouped


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


def _check_shape(source: str, stored: MappedTensor, specs: Iterable[WeightSpec]) -> None:
    """The stored tensor is exactly what the weights made from it take up."""
    if stored.dtype not in SUPPORTED:
        raise ModelLoadError(f"tensor {source} is {stored.dtype}; supported: {', '.join(SUPPORTED)}")
    for spec in specs:
        if spec.part is not None and stored.dtype in QUANTIZED:
            raise ModelLoadError(f"tensor {source} is {stored.dtype} and holds several weights: this is not supported")
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
