"""The GGUF container, versions 2 and 3: metadata and tensors of one file. Knows nothing of models.

Written from the format's description, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The header of a
damaged or hostile file is refused before anything of the size it claims is allocated: counts, products and offsets
are Python integers, checked against the file's size and against the limits below.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from knee.errors import ModelLoadError
from knee.weights.tensor import SUPPORTED, MappedTensor, map_file, stored_bytes

# Generous for real models (the largest vocabularies need 10 MB), small enough to refuse nonsense at once.
MAX_HEADER_BYTES = 32 << 20
MAX_ENTRIES = 1 << 16  # metadata keys; tensors
MAX_STRINGS = 1 << 20  # in all arrays together
MAX_DIMENSIONS = 4

_Value = gguf.GGUFValueType
_NUMBERS = {
    _Value.UINT8: "<B",
    _Value.INT8: "<b",
    _Value.UINT16: "<H",
    _Value.INT16: "<h",
    _Value.UINT32: "<I",
    _Value.INT32: "<i",
    _Value.UINT64: "<Q",
    _Value.INT64: "<q",
    _Value.FLOAT32: "<f",
    _Value.FLOAT64: "<d",
    _Value.BOOL: "<?",
}
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class GgufFile:
    """A checked file. Arrays of numbers in the metadata are NumPy arrays, arrays of strings are lists."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, MappedTensor]  # names and row order of llama.cpp; shape outermost first


def read_gguf(path: Path) -> GgufFile:
    """Read and check a file's header. `ModelLoadError` says what is wrong with it."""
    try:
        return _read(path, map_file(path))
    except ModelLoadError as error:
        raise ModelLoadError(f"{path.name}: {error}") from error


def _read(path: Path, data: memoryview) -> GgufFile:
    header = _Header(data)
    tensor_count, entry_count = _read_preamble(header)
    metadata = _read_metadata(header, entry_count)
    infos = [_read_tensor_info(header) for _ in range(tensor_count)]
    alignment = _alignment(metadata)
    body = -(-header.position // alignment) * alignment
    _check_places(infos, alignment, len(data) - body)
    tensors: dict[str, MappedTensor] = {}
    for info in infos:
        if info.name in tensors:
            raise ModelLoadError(f"damaged: two tensors are called {info.name!r}")
        start = body + info.offset
        tensors[info.name] = MappedTensor(info.name, info.shape, info.dtype, data[start : start + info.nbytes])
    return GgufFile(path, metadata, tensors)


class _Header:
    """A cursor over the header that never reads past the file's end or the limits."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.position = 0
        self.end = min(len(data), MAX_HEADER_BYTES)
        self.strings_left = MAX_STRINGS

    def take(self, count: int) -> int:
        """Move on by `count` bytes; return where they start."""
        start = self.position
        if count > self.end - start:
            if self.end < len(self.data):
                raise ModelLoadError(f"damaged: its header claims more than {MAX_HEADER_BYTES >> 20} MiB")
            raise ModelLoadError("cut short or damaged: its header runs past the end; download it again")
        self.position = start + count
        return start

    def number(self, value_type: int) -> Any:
        layout = _NUMBERS[_Value(value_type)]
        return struct.unpack_from(layout, self.data, self.take(struct.calcsize(layout)))[0]

    def string(self) -> str:
        length = _LENGTH.unpack_from(self.data, self.take(8))[0]
        start = self.take(length)
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError:
            raise ModelLoadError(f"damaged: no UTF-8 in the text at byte {start}") from None

    def value(self) -> Any:
        value_type = self.number(_Value.UINT32)
        return self.array() if value_type == _Value.ARRAY else self.scalar(value_type)

    def scalar(self, value_type: int) -> Any:
        if value_type == _Value.STRING:
            return self.string()
        if value_type not in _NUMBERS:
            raise ModelLoadError(f"damaged: a metadata value has the unknown type {value_type}")
        return self.number(value_type)

    def array(self) -> Any:
        value_type, count = self.number(_Value.UINT32), self.number(_Value.UINT64)
        if value_type == _Value.STRING:
            return self.strings(count)
        if value_type not in _NUMBERS:
            raise ModelLoadError(f"damaged: an array in the metadata has the unknown type {value_type}")
        dtype = np.dtype(_NUMBERS[_Value(value_type)])
        start = self.take(count * dtype.itemsize)
        return np.frombuffer(self.data, dtype, count, start)

    def strings(self, count: int) -> list[str]:
        self.strings_left -= count
        if self.strings_left < 0 or count * 8 > self.end - self.position:
            raise ModelLoadError(f"damaged: an array in the metadata claims {count} texts")
        found: list[str] = []
        data, end, length_at = self.data, self.end, _LENGTH.unpack_from
        for _ in range(count):  # `string`, spelled out: a vocabulary with its merges has a hundred thousand
            start = self.position + 8
            stop = start + length_at(data, self.position)[0] if start <= end else end + 1
            if stop > end:
                found.append(self.string())  # says what is wrong
                continue
            try:
                found.append(str(data[start:stop], "utf-8"))
            except UnicodeDecodeError:
                raise ModelLoadError(f"damaged: no UTF-8 in the text at byte {start}") from None
            self.position = stop
        return found


def _read_preamble(header: _Header) -> tuple[int, int]:
    """Numbers of tensors and of metadata entries."""
    if bytes(header.data[:4]) != b"GGUF":
        raise ModelLoadError("not a GGUF file (it does not start with 'GGUF'); download it again")
    header.take(4)
    version = header.number(_Value.UINT32)
    if version not in (2, 3):
        big_endian = version & 0xFFFF == 0
        found = "a big-endian file" if big_endian else f"version {version}"
        raise ModelLoadError(f"{found} is not supported; supported: little-endian GGUF 2 and 3")
    tensors, entries = header.number(_Value.UINT64), header.number(_Value.UINT64)
    if max(tensors, entries) > MAX_ENTRIES:
        raise ModelLoadError(f"damaged: its header claims {tensors} tensors and {entries} metadata entries")
    return tensors, entries


def _read_metadata(header: _Header, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(count):
        key = header.string()
        if key in metadata:
            raise ModelLoadError(f"damaged: metadata key {key!r} comes twice")
        metadata[key] = header.value()
    return metadata


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    offset: int  # from the start of the tensors' part of the file


def _read_tensor_info(header: _Header) -> _TensorInfo:
    name = header.string()
    dimensions = header.number(_Value.UINT32)
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise ModelLoadError(f"damaged: tensor {name!r} has {dimensions} dimensions")
    innermost_first = [header.number(_Value.UINT64) for _ in range(dimensions)]
    shape = tuple(reversed(innermost_first))
    dtype = _dtype(name, header.number(_Value.UINT32))
    if prod(shape) == 0:
        raise ModelLoadError(f"damaged: tensor {name!r} has the shape {shape}")
    return _TensorInfo(name, shape, dtype, stored_bytes(shape, dtype), header.number(_Value.UINT64))


def _dtype(name: str, code: int) -> str:
    try:
        dtype = gguf.GGMLQuantizationType(code).name
    except ValueError:
        dtype = f"of unknown type {code}"
    if dtype not in SUPPORTED:
        raise ModelLoadError(f"tensor {name!r} is {dtype}; supported: {', '.join(SUPPORTED)}")
    return dtype


def _alignment(metadata: Mapping[str, Any]) -> int:
    alignment = metadata.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise ModelLoadError(f"damaged: general.alignment is {str(alignment)[:40]}, not a power of two from 8 on")
    return alignment


def _check_places(infos: list[_TensorInfo], alignment: int, available: int) -> None:
    """Every tensor is aligned, inside the file, and shares no byte with another."""
    end = 0
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset % alignment:
            raise ModelLoadError(f"damaged: tensor {info.name!r} is not aligned to {alignment} bytes")
        if info.offset < end:
            raise ModelLoadError(f"damaged: tensor {info.name!r} overlaps another one")
        end = info.offset + info.nbytes
        if end > available:
            raise ModelLoadError(
                f"cut short or damaged: tensor {info.name!r} ends {end - available} bytes past the end of the file; "
                "download it again"
            )
