"""The tensors of one safetensors file. Knows nothing of models.

The `safetensors` package checks the header, the places of the tensors included; the bytes are then mapped here, so that
a device can take them as they are. What the header claims is bounded first, since a hundred megabytes of JSON would
be read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from knee.errors import ModelLoadError
from knee.weights.tensor import SUPPORTED, MappedTensor, map_file, stored_bytes

MAX_HEADER_BYTES = 4 << 20  # some 30,000 tensors


def read_safetensors(path: Path) -> dict[str, MappedTensor]:
    """A file's tensors by name, in the order of the file. `ModelLoadError` says what is wrong with its header."""
    _check_header_size(path)
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path.name} is cut short or damaged ({error}): download it again") from None
    data = map_file(path)
    # The file's first eight bytes are the header's length, https://huggingface.co/docs/safetensors.
    body = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:body]))
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    in_order = sorted(entries.items(), key=lambda item: item[1]["data_offsets"])
    return {name: _tensor(path, data[body:], name, entry) for name, entry in in_order}


def _check_header_size(path: Path) -> None:
    try:
        with path.open("rb") as file:
            claimed = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror or error})") from error
    if claimed > MAX_HEADER_BYTES:
        raise ModelLoadError(
            f"{path.name} is damaged: its header claims {claimed} bytes; at most {MAX_HEADER_BYTES} are read"
        )


def _tensor(path: Path, body: memoryview, name: str, entry: dict[str, Any]) -> MappedTensor:
    shape, dtype, (start, stop) = tuple(entry["shape"]), entry["dtype"], entry["data_offsets"]
    if 0 in shape:
        raise ModelLoadError(f"{path.name} is damaged: tensor {name[:60]!r} of shape {shape} is empty")
    data = body[start:stop]
    # What follows relies on it; the package has checked the same, unless the header names a tensor twice.
    if dtype in SUPPORTED and len(data) != stored_bytes(shape, dtype):
        raise ModelLoadError(f"{path.name} is damaged: tensor {name[:60]!r} has {len(data)} bytes for {shape} {dtype}")
    return MappedTensor(name, shape, dtype, data)
