"""Storage types decode as the packages that define them do; broken numbers are found."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from knee.errors import ModelLoadError, NumericsError
from knee.weights.tensor import CHUNK, QUANTIZED, MappedTensor, storage_type, stored_bytes


def float32_tensor(values: np.ndarray) -> MappedTensor:
    return MappedTensor("w", values.shape, "F32", memoryview(values.astype("<f4").tobytes()))


@pytest.mark.parametrize("dtype", QUANTIZED)
def test_random_blocks_decode_as_in_the_gguf_package(dtype: str) -> None:
    rows, columns = 2 * CHUNK // 512 + 1, 512  # more than a chunk, and not a whole number of them
    row_bytes = stored_bytes((columns,), dtype)
    stored = np.random.default_rng(0).integers(0, 256, (rows, row_bytes), np.uint8)
    scales = stored.reshape(-1, storage_type(dtype).block_bytes)
    scales[:, 1::2] &= 0x3F  # wherever a float16 scale lies, it is finite
    expected = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[dtype])
    read = MappedTensor("w", (rows, columns), dtype, memoryview(stored.tobytes())).read()
    assert read.dtype == np.float32
    assert read.flags.c_contiguous
    np.testing.assert_array_equal(read, expected)


def test_float16_and_bfloat16_are_exact() -> None:
    halves = np.arange(-3, 3, 0.25, np.float16)
    read = MappedTensor("w", halves.shape, "F16", memoryview(halves.tobytes())).read()
    np.testing.assert_array_equal(read, halves.astype(np.float32))
    upper_bits = (np.float32(1.0 + 2**-7).view(np.uint32) >> 16).astype(np.uint16)
    read = MappedTensor("w", (1,), "BF16", memoryview(upper_bits.tobytes())).read()
    assert read[0] == 1.0 + 2**-7


def test_an_unaligned_tensor_is_read() -> None:
    values = np.arange(6, dtype=np.float32)
    stored = memoryview(b"x" + values.tobytes())[1:]
    np.testing.assert_array_equal(MappedTensor("w", (2, 3), "F32", stored).read(), values.reshape(2, 3))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_one_broken_number_is_found_and_its_tensor_named(broken: float) -> None:
    values = np.ones(CHUNK + 5, np.float32)
    values[-2] = broken
    with pytest.raises(NumericsError, match="tensor w holds 1 NaN"):
        float32_tensor(values).read()


def test_huge_but_finite_weights_are_read() -> None:
    values = np.full(8, 3e38, np.float32)
    np.testing.assert_array_equal(float32_tensor(values).read(), values)


def test_a_broken_scale_of_a_block_is_found() -> None:
    block = np.zeros(34, np.uint8)
    block[:2] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(NumericsError):
        MappedTensor("w", (32,), "Q8_0", memoryview(block.tobytes())).read()


def test_rows_are_whole_blocks() -> None:
    with pytest.raises(ModelLoadError, match="rows of 33"):
        stored_bytes((4, 33), "Q8_0")
