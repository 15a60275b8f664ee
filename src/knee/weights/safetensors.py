"""The safetensors container: tensors of one file. Knows nothing of models.

Written from the format's description, https://huggingface.co/docs/safetensors: eight bytes with the header's length,
the header in JSON, then the tensors. The header is checked before anything of the size it claims is allocated, and
the bytes are mapped, so the `safetensors` package (which in NumPy knows no bfloat16) is not needed to read them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from knee.errors import ModelLoadError
from knee.weights.tensor import MappedTensor, map_file, stored_bytes

MAX_HEADER_BYTES = 4 << 20  # some 30,000 tensors; more would need too much memory as Python objects
SUPPORTED = ("F32", "F16", "BF16")
_ITEM_BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "U32": 4, "I32": 4, "U64": 8, "I64": 8, "F64": 8}


def read_safetensors(path: Path) -> dict[str, MappedTensor]:
    """A file's tensors by name. `ModelLoadError` says what is wrong with its header."""
    try:
        return _read(map_file(path))
    except ModelLoadError as error:
        raise ModelLoadError(f"{path.name}: {error}") from error


def _read(data: memoryview) -> dict[str, MappedTensor]:
    header, start = _read_header(data)
    body = data[start:]
    tensors = {name: _tensor(name, entry, body) for name, entry in header.items() if name != "__metadata__"}
    _check_places(header, len(body))
    return tensors


def _read_header(data: memoryview) -> tuple[dict[str, Any], int]:
    """The header, and where the tensors start."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise ModelLoadError(f"cut short or damaged: its header claims {length} bytes; download it again")
    if length > MAX_HEADER_BYTES:
        raise ModelLoadError(f"damaged: its header claims {length} bytes; at most {MAX_HEADER_BYTES} are read")
    try:
        header = json.loads(bytes(data[8 : 8 + length]), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise ModelLoadError("damaged: its header is no JSON; download it again") from None
    if not isinstance(header, dict):
        raise ModelLoadError("damaged: its header is no JSON object; download it again")
    return header, 8 + length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise ModelLoadError("damaged: its header has the same name twice")
    return entries


def _tensor(name: str, entry: Any, body: memoryview) -> MappedTensor:
    shape, dtype, (start, stop) = _checked(name, entry)
    if stop > len(body):
        raise ModelLoadError(
            f"cut short or damaged: tensor {name[:60]!r} ends {stop - len(body)} bytes past the end of the file; "
            "download it again"
        )
    needed = stored_bytes(shape, dtype) if dtype in SUPPORTED else prod(shape) * _ITEM_BYTES[dtype]
    if stop - start != needed:
        raise ModelLoadError(
            f"damaged: tensor {name[:60]!r} has {stop - start} bytes, but {dtype} {shape} needs {needed}"
        )
    return MappedTensor(name, shape, dtype, body[start:stop])


def _checked(name: str, entry: Any) -> tuple[tuple[int, ...], str, tuple[int, int]]:
    """Shape, dtype and place of a tensor, with the JSON's types checked."""
    fields: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {}
    dtype, shape, place = fields.get("dtype"), _whole_numbers(fields, "shape"), _whole_numbers(fields, "data_offsets")
    if shape is None or place is None or len(place) != 2:
        raise ModelLoadError(f"damaged: the entry of tensor {name[:60]!r} in its header makes no sense")
    if dtype not in SUPPORTED and dtype not in _ITEM_BYTES:
        raise ModelLoadError(f"tensor {name[:60]!r} is {str(dtype)[:40]}; supported: {', '.join(SUPPORTED)}")
    return shape, dtype, (place[0], place[1])


def _whole_numbers(fields: Mapping[str, Any], key: str) -> tuple[int, ...] | None:
    """A short list of whole numbers, or None: a long one would only be the work of multiplying it."""
    value = fields.get(key)
    if not isinstance(value, list) or len(value) > 8:
        return None
    return tuple(value) if all(type(item) is int and item >= 0 for item in value) else None


def _check_places(header: Mapping[str, Any], available: int) -> None:
    """The tensors follow each other without gaps, as the format demands, and fill the file."""
    end = 0
    places = [(*entry["data_offsets"], name) for name, entry in header.items() if name != "__metadata__"]
    for start, stop, name in sorted(places):
        if start != end or stop <= start:
            raise ModelLoadError(f"damaged: tensor {name[:60]!r} is empty, overlaps another one, or leaves a gap")
        end = stop
    if end != available:
        raise ModelLoadError(f"damaged: {available - end} bytes follow its last tensor")
