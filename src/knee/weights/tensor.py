"""Tensors in mapped files, turned into float32. Knows storage types; knows no file headers and no models.

A tensor is decoded in chunks that stay in a core's cache: over whole tensors the same NumPy code is several times
slower, and its temporaries would need as much memory as the result.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from math import isfinite, prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from knee.errors import ModelLoadError, NumericsError

Decode = Callable[[NDArray[np.uint8]], NDArray[Any]]

# Elements. The temporaries stay below the 128 KiB at which malloc asks the kernel for fresh, unmapped pages each time.
CHUNK = 24 << 10


@dataclass(frozen=True, slots=True)
class StorageType:
    """How a tensor's elements are stored: `decode` turns (blocks, block_bytes) bytes into (blocks, block) numbers."""

    block: int  # elements
    block_bytes: int
    decode: Decode


QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q5_K", "Q6_K")
SUPPORTED = ("F32", "F16", "BF16", *QUANTIZED)


@cache
def storage_type(dtype: str) -> StorageType:
    """The storage type of one of `SUPPORTED`. `KeyError` for any other."""
    if dtype in QUANTIZED:
        return _quantized(dtype)
    return {
        "F32": StorageType(1, 4, lambda blocks: blocks.view("<f4")),
        "F16": StorageType(1, 2, lambda blocks: blocks.view("<f2")),
        "BF16": StorageType(1, 2, _decode_bfloat16),
    }[dtype]


def _decode_bfloat16(blocks: NDArray[np.uint8]) -> NDArray[Any]:
    """A bfloat16 is the upper half of a float32."""
    return (blocks.view("<u2").astype("<u4") << 16).view("<f4")


def _quantized(dtype: str) -> StorageType:
    """Block formats of GGML, decoded by the `gguf` package. Imported here: safetensors need none of it."""
    import gguf
    from gguf import quants

    block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype]]
    return StorageType(block, block_bytes, getattr(quants, dtype).dequantize_blocks)


@dataclass(frozen=True, slots=True)
class MappedTensor:
    """A tensor in a mapped file; `data` are its bytes, checked to be as many as shape and dtype need.

    `interleaved_heads`: number of attention heads whose rows are stored in pairs (i, i + head_dim/2), as llama.cpp
    wants queries and keys; `read` puts them back into halves.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    data: memoryview
    interleaved_heads: int | None = None

    def read(self) -> NDArray[np.float32]:
        """The tensor as C-contiguous float32. `NumericsError` where it is not finite."""
        storage = storage_type(self.dtype)
        values = np.empty(self.shape, np.float32)
        blocks = self.stored().reshape(-1, storage.block_bytes)
        chunks = values.reshape(-1, storage.block)
        step = max(1, CHUNK // storage.block)
        with np.errstate(all="ignore"):  # what is not finite is reported below
            for start in range(0, len(blocks), step):
                chunks[start : start + step] = storage.decode(blocks[start : start + step])
        check_finite(self.name, values)
        return values

    def stored(self) -> NDArray[np.uint8]:
        """The tensor's bytes, flat; mapped, or a copy where its rows have to be put in order."""
        stored = np.frombuffer(self.data, np.uint8)
        if self.interleaved_heads is None:
            return stored
        pairs = stored.reshape(self.interleaved_heads, self.shape[0] // self.interleaved_heads // 2, 2, -1)
        return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(-1)

    def cut(self, begin: int, end: int, axis: int) -> MappedTensor:
        """Elements [begin, end) along an axis, as a tensor of its own. Not for quantized ones."""
        elements = self.stored().reshape(*self.shape, -1)
        part = np.ascontiguousarray(elements[(slice(None),) * axis + (slice(begin, end),)])
        return replace(self, shape=part.shape[:-1], data=part.reshape(-1).data, interleaved_heads=None)

    def release(self) -> None:
        """Let the pages go that reading has brought into this process's memory."""
        release_pages(self.data)


def stored_bytes(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor of one of the `SUPPORTED` types, in Python integers that cannot overflow.

    `ModelLoadError` where a row is not a whole number of blocks.
    """
    storage = storage_type(dtype)
    if shape and shape[-1] % storage.block:
        raise ModelLoadError(f"rows of {shape[-1]} are no whole number of {dtype} blocks of {storage.block}")
    return prod(shape) // storage.block * storage.block_bytes


def map_file(path: Path) -> memoryview:
    """The bytes of a file, mapped and read-only. They must not change while a model is open."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size == 0:
                raise ModelLoadError(f"{path}: the file is empty; download it again")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror or error})") from error


def release_pages(data: memoryview) -> None:
    """Take the pages of a mapped file out of this process's memory; they come back when they are read.

    Without this a file counts as memory of the process until it is closed, beside the weights made from it. Systems
    that cannot be told so (Windows) or only take it as a hint (macOS) give the pages up when memory gets scarce.
    """
    mapped = data.obj
    if not isinstance(mapped, mmap.mmap) or not hasattr(mmap, "MADV_DONTNEED"):
        return
    start = _address(data) - _address(memoryview(mapped))
    into_page = start % mmap.PAGESIZE
    with suppress(OSError):
        mapped.madvise(mmap.MADV_DONTNEED, start - into_page, len(data) + into_page)


def _address(data: memoryview) -> int:
    return int(np.frombuffer(data, np.uint8).ctypes.data)


def check_finite(name: str, values: NDArray[np.float32]) -> None:
    """The sum of squares finds every NaN and infinity at the speed of memory; huge weights may overflow it too."""
    flat = values.reshape(-1)
    with np.errstate(all="ignore"):
        if isfinite(np.dot(flat, flat)):
            return
    broken = int(np.count_nonzero(~np.isfinite(flat)))
    if broken:
        raise NumericsError(f"tensor {name} holds {broken} NaN or infinite values; the model file is damaged")
