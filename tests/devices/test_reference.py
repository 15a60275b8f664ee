"""The reference device by itself: what it hands out, what it refuses, and that the cache changes nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knee.devices import ReferenceDevice, Span, Want, choose_device
from knee.errors import NumericsError, UserError
from knee.models import build_program
from tests.devices.weights import array_weights, random_values

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 37,
    "max_position_embeddings": 64,
}


def make_device(spoil: Callable[[dict[str, np.ndarray]], None] = lambda _weights: None) -> ReferenceDevice:
    program = build_program(CONFIG)
    values = random_values(program)
    spoil(values)
    return ReferenceDevice(program, array_weights(program, values))


@pytest.fixture(scope="module")
def device() -> ReferenceDevice:
    return make_device()


def uncached(device: ReferenceDevice, tokens: list[int]) -> np.ndarray:
    [output] = device.execute([Span(tokens, 0, (), Want.ALL_LOGITS)])
    assert output.logits is not None
    return output.logits


def test_each_span_gets_what_it_wants(device: ReferenceDevice) -> None:
    tokens = [3, 1, 4, 1, 5]
    all_logits = uncached(device, tokens)
    wants = [Want.LOGITS, Want.NOTHING, Want.TOKEN, Want.ALL_LOGITS]
    last, nothing, token, whole = device.execute([Span(tokens, 0, (), want) for want in wants])
    assert last.logits is not None
    assert last.logits.shape == (1, 37)
    assert (nothing.token, nothing.logits) == (None, None)
    assert token.token == int(all_logits[-1].argmax())
    assert whole.logits is not None
    assert whole.logits.shape == (5, 37)
    np.testing.assert_allclose(whole.logits, all_logits, atol=1e-4)


def test_a_step_in_which_nobody_wants_logits_only_fills_the_cache(device: ReferenceDevice) -> None:
    device.allocate_kv(num_blocks=4, block_size=4)
    [output] = device.execute([Span([1, 2, 3], 0, [0], Want.NOTHING)])
    assert output.logits is None
    [output] = device.execute([Span([4], 3, [0], Want.LOGITS)])
    assert output.logits is not None
    np.testing.assert_allclose(output.logits[0], uncached(device, [1, 2, 3, 4])[-1], atol=1e-4)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_batch_over_any_blocks_computes_what_each_request_alone_computes(data: st.DataObject) -> None:
    device = make_device()
    block_size = data.draw(st.integers(1, 7))
    texts = data.draw(st.lists(st.lists(st.integers(0, 36), min_size=2, max_size=20), min_size=1, max_size=4))
    needed = [-(-len(text) // block_size) for text in texts]
    blocks = data.draw(st.permutations(range(sum(needed) + 3)))
    device.allocate_kv(len(blocks), block_size)
    tables = [[blocks.pop() for _ in range(count)] for count in needed]
    cuts = [data.draw(st.integers(1, len(text) - 1)) for text in texts]
    device.execute([Span(t[:c], 0, table, Want.NOTHING) for t, c, table in zip(texts, cuts, tables, strict=True)])
    rest = [Span(t[c:], c, table, Want.ALL_LOGITS) for t, c, table in zip(texts, cuts, tables, strict=True)]
    for text, cut, output in zip(texts, cuts, device.execute(rest), strict=True):
        np.testing.assert_allclose(output.logits, uncached(device, text)[cut:], atol=1e-3)  # of logits around 10


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("want", [Want.TOKEN, Want.LOGITS, Want.ALL_LOGITS])
def test_no_token_is_ever_picked_from_nan(bad: float, want: Want) -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        weights["lm_head.weight"][5, 3] = bad

    with pytest.raises(NumericsError, match="position 2"):
        make_device(spoil).execute([Span([1, 2, 3], 0, (), want)])


def test_devices_and_weight_types_that_are_not_there_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="reference"):
        choose_device("tpu")
    with pytest.raises(UserError, match="float32"):
        choose_device("reference", "int8")
    with pytest.raises(UserError, match="at least 1"):
        choose_device("reference", "auto", 0)


def test_costs_of_the_pool_are_those_of_its_arrays(device: ReferenceDevice) -> None:
    device.allocate_kv(num_blocks=5, block_size=3)
    allocated = sum(array.nbytes for array in [*device.keys, *device.values])
    assert allocated == 5 * 3 * device.kv_bytes_per_token
