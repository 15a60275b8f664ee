"""How the cuda device cuts linear layers into tiles: a pure table, and what no choice in it may do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knee.devices.cuda.batch import coarse
from knee.devices.cuda.tiling import (
    CHUNK,
    LIBRARY_ROWS,
    attend_stages,
    choose_tiling,
    early_warps,
    padded,
    parts_of,
)

EPILOGUES = ("plain", "gate", "write_kv", "logits")
CARDS = {"H100": 225 * 1024, "A100": 156 * 1024, "L4": 92 * 1024}  # bytes of shared memory for a program


@given(inputs=st.integers(1, 20_000))
def test_inputs_are_padded_to_whole_rounds_and_by_little(inputs: int) -> None:
    chunks, parts = -(-inputs // CHUNK), parts_of(inputs)
    assert padded(inputs) % (parts * CHUNK) == 0
    assert inputs <= padded(inputs) <= max(1.15 * chunks, 2) * CHUNK
    assert padded(inputs) >= 2 * parts * CHUNK, "one chunk a part would become one chain, a bias its beginning"


@pytest.mark.parametrize("shared", CARDS.values(), ids=CARDS)
@given(epilogue=st.sampled_from(EPILOGUES), rows=st.integers(1, 10_000), inputs=st.integers(1, 20_000))
def test_tiles_fit_a_card_and_read_no_more_than_there_is(shared: int, epilogue: str, rows: int, inputs: int) -> None:
    chosen = choose_tiling(epilogue, rows, inputs, False, shared)
    rounds = padded(inputs) // (CHUNK * parts_of(inputs))
    assert chosen.ahead <= rounds, "the next output's weights"
    depth = CHUNK * (4 if chosen.few else parts_of(inputs))
    stage = 2 * depth * (chosen.rows + chosen.columns)
    assert max(chosen.stages, chosen.ahead) * stage <= shared
    assert chosen.columns >= 16
    assert chosen.rows >= 16
    assert chosen.stages >= 1


@given(
    epilogue=st.sampled_from(EPILOGUES), rows=st.integers(1, 10_000), inputs=st.integers(1, 20_000), wide=st.booleans()
)
def test_a_choice_changes_only_at_powers_of_two(epilogue: str, rows: int, inputs: int, wide: bool) -> None:
    """A step's kernels are known by its rows rounded up to one."""
    same = choose_tiling(epilogue, coarse(rows), inputs, wide, CARDS["H100"])
    assert choose_tiling(epilogue, rows, inputs, wide, CARDS["H100"]) == same
    assert (rows > LIBRARY_ROWS) == (coarse(rows) > LIBRARY_ROWS)


def test_attention_has_as_many_stages_as_fit() -> None:
    assert attend_stages(3, 64, 2, CARDS["H100"]) == 3
    assert attend_stages(3, 256, 2, CARDS["L4"]) == 1
    assert attend_stages(3, 128, 4, CARDS["A100"]) == 1


def test_a_thread_holds_as_much_of_the_cache_with_heads_of_any_size() -> None:
    assert [early_warps(256, dim, 2) for dim in (16, 64, 128, 256)] == [4, 4, 8, 16]
