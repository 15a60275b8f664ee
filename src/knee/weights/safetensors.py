"""The tensors of one safetensors file, through the `safetensors` package. Knows nothing of models.

The package checks the header; what it claims is bounded here first, since a hundred megabytes of JSON would be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  teaches NumPy bfloat16, which the package asks it for
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from knee.errors import ModelLoadError
from knee.weights.tensor import check_finite

MAX_HEADER_BYTES = 4 << 20  # some 30,000 tensors


@dataclass(frozen=True, slots=True)
class SafetensorsTensor:
    """A tensor of an open file."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Any

    def read(self) -> NDArray[np.float32]:
        """The tensor as C-contiguous float32. `NumericsError` where it is not finite."""
        values = np.ascontiguousarray(self.file.get_tensor(self.name), dtype=np.float32)
        check_finite(self.name, values)
        return values


def read_safetensors(path: Path) -> dict[str, SafetensorsTensor]:
    """A file's tensors by name. `ModelLoadError` says what is wrong with its header, or that a type is not read."""
    _check_header_size(path)
    try:
        file: Any = safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(f"{path.name} is cut short or damaged ({error}): download it again") from None
    return {name: _tensor(path, file, name) for name in file.offset_keys()}


def _check_header_size(path: Path) -> None:
    """The header's length is the file's first eight bytes, https://huggingface.co/docs/safetensors."""
    try:
        with path.open("rb") as file:
            claimed = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror or error})") from error
    if claimed > MAX_HEADER_BYTES:
        raise ModelLoadError(
            f"{path.name} is damaged: its header claims {claimed} bytes; at most {MAX_HEADER_BYTES} are read"
        )


def _tensor(path: Path, file: Any, name: str) -> SafetensorsTensor:
    entry = file.get_slice(name)
    shape, dtype = tuple(entry.get_shape()), entry.get_dtype()
    if 0 in shape:
        raise ModelLoadError(f"{path.name} is damaged: tensor {name[:60]!r} of shape {shape} is empty")
    return SafetensorsTensor(name, shape, dtype, file)
