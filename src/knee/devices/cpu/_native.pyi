"""The native code of the cpu device: kernels for several instruction sets, and models that run on them.

Ids of weights and buffers are small integers that the model hands out; -1 stands for none.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# data, storage type, stored rows, stored columns, transposed, begin, end: see `StoredWeight`.
Part = tuple[NDArray[np.uint8], str, int, int, bool, int, int]
# buffer, first column, columns.
View = tuple[int, int, int]
# kind, x, up, weight, bias, eps, activation. "copy" takes x as it is; "rms" and "layer" normalize whole rows of it with
# weight and bias; "gate" is activation(x) * up. What a kind does not use is (-1, 0, 0), -1, 0.0 or "".
Prologue = tuple[str, View, View, int, int, float, str]
# tokens, start, block table, want: 0 nothing, 1 the greedy token, 2 the last logits, 3 all logits.
StepSpan = tuple[Sequence[int], int, Sequence[int], int]

def supported_isas() -> list[str]:
    """Instruction sets that were compiled and that this CPU runs, best first."""

def compiled_isas() -> list[str]:
    """All that were compiled."""

def read_bandwidth(isa: str, threads: int, bytes: int) -> float:
    """Bytes a second that one pass over a buffer of this size reads."""

def dot_rate(isa: str, dtype: str, threads: int) -> float:
    """FLOP a second of the inner product of a weight type, from registers and the first cache."""

class Model:
    """A program with its weights, as native code runs it. Made by a call for each weight and operation, in order."""

    panel: int  # outputs of a matrix are packed in panels of this many; parts of a buffer start at multiples of it
    isa: str
    threads: int
    weight_bytes: int

    def __init__(self, isa: str, threads: int, dtype: str, heads: int, kv_heads: int, head_dim: int) -> None:
        """Keys and values are kept in float32, bfloat16, float16, float16 for float32, bfloat16, int8, int4."""
    # --- weights: data is read at once, nothing of it is kept
    def matrix(self, parts: list[Part], keep: str) -> int:
        """Weights side by side, packed as "float32", "bfloat16", "int8" or "int4"; all have the same inputs.

        Each part starts at a fresh panel. int4 keeps the exact values of Q4_0 and Q4_1 and rounds any other. Only F32,
        F16 and BF16 can be transposed. Raises `ValueError` where a value is not finite.
        """
    def vector(self, values: NDArray[np.float32]) -> int:
        """A norm's weight or a bias; a bias has zeros wherever the matrix has padding."""
    def table(self, values: NDArray[np.float32]) -> int:
        """Position embeddings: (positions, width)."""
    def rope(self, inverse_frequencies: NDArray[np.float32]) -> int:
        """Rotary positions: (head_dim / 2,)."""
    # --- buffers and operations
    def buffer(self, width: int, outputs: bool) -> int:
        """A matrix of activations, rounded up to whole panels: a row a token or, with `outputs`, a wanted position."""
    def embed(self, out: View, matrix: int, table: int) -> None:
        """Rows of the matrix (its outputs), plus those of the table where there is one."""
    def norm(self, out: View, x: View, kind: str, weight: int, bias: int, eps: float) -> None:
        """Kind "rms" or "layer", over groups of as many columns as the weight has."""
    def linear(
        self, out: View, prologue: Prologue, matrix: int, bias: int, activation: str, residual: View | None
    ) -> None:
        """`out` is the place of the first part; the others follow, each from a fresh panel on.

        `activation` is "", "silu", "gelu_tanh" or "relu".
        """
    def write_kv(self, layer: int, q: View, k: View, v: View, rope: int) -> None:
        """Turns q and k in place, unless `rope` is -1; writes k and v into the cache."""
    def attention(self, layer: int, out: View, q: View, k: View, v: View, scale: float) -> None:
        """Over the cache, or over k and v themselves for spans without a block table."""
    def select_outputs(self, out: View, x: View) -> None:
        """The rows whose logits are wanted."""
    def logits(self, prologue: Prologue, matrix: int, bias: int, vocab: int) -> None:
        """The last operation: the best token of rows that want one, all logits of those that want these."""
    # --- running
    def allocate_kv(self, layers: int, num_blocks: int, block_size: int) -> None:
        """The KV pool; replaces an earlier one."""
    def kv_bytes_per_token(self, layers: int) -> int:
        """Bytes of one token's keys and values."""
    def execute(self, spans: list[StepSpan]) -> tuple[list[int], NDArray[np.float32] | None]:
        """One step: for each span the greedy token, -1 where none is wanted, -2 where a wanted logit is not finite; and
        the wanted rows of logits, span after span, or None. Lets go of the interpreter's lock meanwhile.
        """
