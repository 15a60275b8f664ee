"""What the cpu device hands to native code, checked by a native module in NumPy that computes what it is told."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import knee.devices.cpu
from knee.devices import ReferenceDevice, Span, Want, choose_device
from knee.devices.base import FloatArray, StoredWeight, Weight
from knee.devices.cpu import CpuDevice
from knee.errors import NumericsError, UserError
from knee.models import build_program
from knee.program import Buffer, Gate, Program
from knee.weights.load import FileWeight
from knee.weights.tensor import MappedTensor
from tests.devices.fake_native import MODELS, PANEL, native  # noqa: F401  a fixture
from tests.devices.models import CONFIGS, VOCAB
from tests.devices.weights import ArrayWeight, array_weights, random_values

pytestmark = pytest.mark.usefixtures("native")


def model_weights(name: str) -> tuple[Program, dict[str, FloatArray]]:
    """Weights that keep activations near one, so that a wrong column shows."""
    program = build_program(CONFIGS[name])
    values = random_values(program)
    for value in values.values():
        value /= np.sqrt(value.shape[-1]) if value.ndim > 1 else 1
    return program, values


def stored_as_files_do(program: Program, values: dict[str, FloatArray]) -> dict[str, Weight]:
    """GPT-2's transposed and fused tensors put together as in its checkpoints, everything else as it is."""
    sources: dict[str, FloatArray] = {}
    for spec, value in ((spec, values[name]) for name, spec in program.weights.items()):
        stored = value.T if spec.transposed else value
        before = sources.get(spec.source)
        sources[spec.source] = stored if before is None else np.concatenate([before, stored], axis=-1)
    tensors = {
        name: MappedTensor(name, value.shape, "F32", np.ascontiguousarray(value).view(np.uint8).reshape(-1).data)
        for name, value in sources.items()
    }
    return {name: FileWeight(spec, tensors[spec.source]) for name, spec in program.weights.items()}


def devices(name: str) -> tuple[CpuDevice, ReferenceDevice]:
    program, values = model_weights(name)
    return CpuDevice(program, stored_as_files_do(program, values)), ReferenceDevice(
        program, array_weights(program, values)
    )


def logits(output: Any) -> FloatArray:
    found: FloatArray = output.logits
    return found


# --- the same results as the reference ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_computes_what_the_reference_computes(name: str) -> None:
    cpu, reference = devices(name)
    tokens = [int(token) for token in np.random.default_rng(1).integers(0, VOCAB, 23)]
    span = Span(tokens, 0, (), Want.ALL_LOGITS)
    [expected], [found] = reference.execute([span]), cpu.execute([span])
    assert logits(found).shape == (23, VOCAB)
    np.testing.assert_allclose(logits(found), logits(expected), atol=2e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_batches_over_scattered_blocks_too(name: str) -> None:
    cpu, reference = devices(name)
    tables, wants = [[5, 0], [3, 1], [2, 4]], [Want.LOGITS, Want.NOTHING, Want.ALL_LOGITS]
    steps = [
        [Span([1, 2, 3], 0, tables[0], Want.NOTHING), Span([7], 0, tables[1], Want.TOKEN)],
        [Span([4 + i], 3 - 2 * i, tables[i], wants[i]) for i in range(2)] + [Span([9, 8, 7], 0, tables[2], wants[2])],
        [Span([5], (4, 2, 3)[i], tables[i], Want.TOKEN) for i in range(3)],
    ]
    for device in (cpu, reference):
        device.allocate_kv(num_blocks=6, block_size=4)
    for batch in steps:
        for found, expected in zip(cpu.execute(batch), reference.execute(batch), strict=True):
            assert found.token == expected.token
            assert (found.logits is None) == (expected.logits is None)
            if expected.logits is not None:
                np.testing.assert_allclose(logits(found), expected.logits, atol=2e-4)


@pytest.mark.parametrize("want", [Want.TOKEN, Want.LOGITS, Want.ALL_LOGITS])
def test_no_token_is_ever_picked_from_what_is_not_finite(want: Want) -> None:
    program, values = model_weights("llama")
    values["model.norm.weight"][:] = 3e38
    device = CpuDevice(program, array_weights(program, values))
    with pytest.raises(NumericsError, match="position 4"):
        device.execute([Span([1], 0, (), Want.NOTHING), Span([1, 2, 3, 4, 5], 0, (), want)])


# --- what is handed over -----------------------------------------------------------------------------------------


def test_a_layer_takes_six_operations_and_a_tied_embedding_one_matrix() -> None:
    devices("llama-tied")
    [model] = MODELS
    layer = ["linear", "write_kv", "attention", "linear", "linear", "linear"]
    assert [name for name, _ in model.ops] == ["embed", *layer * 2, "select_outputs", "logits"]
    assert len(model.matrices) == 1 + 4 * 2
    assert [len(matrix.widths) for matrix in model.matrices[1:5]] == [3, 1, 2, 1]
    devices("llama")
    assert len(MODELS[-1].matrices) == 2 + 4 * 2
    assert len(MODELS[-1].ropes) == 1


def test_buffers_are_as_many_as_are_needed() -> None:
    """x, q|k|v, attended, gate|up; and the last rows, one for each wanted position."""
    devices("llama")
    widths = [42, 60, 60, 70, 42]
    sides = {1: padded(60) + 2 * padded(20), 3: 2 * padded(70)}
    expected = [(sides.get(i, padded(width)), i == 4) for i, width in enumerate(widths)]
    assert MODELS[-1].buffers == expected


def padded(width: int) -> int:
    return -(-width // PANEL) * PANEL


def test_pages_of_the_file_are_let_go_once_packed() -> None:
    program, values = model_weights("gpt2")
    released: list[str] = []

    class Noted(ArrayWeight):
        def release(self) -> None:
            released.append(self.spec.source)

    CpuDevice(program, {name: Noted(spec, values[name]) for name, spec in program.weights.items()})
    assert set(released) == {spec.source for spec in program.weights.values()}


def test_a_weight_that_is_not_finite_is_named() -> None:
    program, values = model_weights("llama")
    values["model.layers.1.mlp.up_proj.weight"][2, 3] = np.nan
    with pytest.raises(NumericsError, match=r"tensor model\.layers\.1\.mlp\.up_proj\.weight holds 1 NaN"):
        CpuDevice(program, stored_as_files_do(program, values))


def test_weights_that_a_type_cannot_hold_are_named_with_a_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise ValueError("too large for float16")

    program, values = model_weights("llama")
    monkeypatch.setattr(knee.devices.cpu._native.Model, "matrix", refuse)
    with pytest.raises(UserError, match=r"model\.embed_tokens\.weight: .* int8 \(too large.*--dtype float32"):
        CpuDevice(program, array_weights(program, values), "int8")


def test_a_program_without_native_operations_for_it_is_refused() -> None:
    program, values = model_weights("llama-tied")
    gate = Gate("spare", "gate", "up", "silu")
    odd = replace(
        program, ops=(*program.ops[:-1], gate, program.ops[-1]), buffers={**program.buffers, "spare": Buffer(70)}
    )
    with pytest.raises(UserError, match="has no Gate"):
        CpuDevice(odd, array_weights(odd, values))


def test_what_the_device_says_of_itself() -> None:
    program, values = model_weights("llama")
    weights = array_weights(program, values)
    device = CpuDevice(program, weights, "bfloat16", threads=3)
    assert (device.dtype, device.threads, device.isa) == ("bfloat16", 3, "fast")
    assert (MODELS[-1].threads, MODELS[-1].dtype) == (3, "bfloat16")
    assert device.kv_bytes_per_token == 2 * program.kv_elements_per_token
    assert device.weight_bytes == MODELS[-1].weight_bytes
    assert CpuDevice(program, weights).threads >= 1


# --- instruction sets, and a missing extension -------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """ "auto" is the cpu device on any machine."""
    monkeypatch.setattr(knee.devices, "has_gpu", lambda: False)


@pytest.mark.usefixtures("no_gpu")
def test_an_instruction_set_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    program, values = model_weights("llama")
    monkeypatch.setenv("KNEE_ISA", "portable")
    assert CpuDevice(program, array_weights(program, values)).isa == "portable"
    monkeypatch.setenv("KNEE_ISA", "fastest")
    with pytest.raises(UserError, match=r"KNEE_ISA is 'fastest'; .*: fast, portable: unset it"):
        choose_device("auto")


def test_a_cpu_without_any_of_the_instruction_sets_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knee.devices.cpu._native, "supported_isas", list)
    with pytest.raises(UserError, match="fastest, fast, portable"):
        choose_device("cpu")


@pytest.mark.usefixtures("no_gpu")
def test_without_the_extension_the_user_is_told_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(knee.devices.cpu, "_native")
    monkeypatch.setitem(sys.modules, "knee.devices.cpu._native", None)
    for name in ("auto", "cpu"):
        with pytest.raises(UserError, match=r"device cpu cannot run here: .*pip install knee.*--device reference"):
            choose_device(name)
    assert choose_device("reference") is ReferenceDevice


@pytest.mark.usefixtures("no_gpu")
def test_the_best_device_there_is_comes_first() -> None:
    assert choose_device("auto", "int4") is CpuDevice


def test_devices_are_listed_without_loading_the_extension() -> None:
    code = "import sys, knee.devices; sys.exit('knee.devices.cpu._native' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- which types -------------------------------------------------------------------------------------------------


class Stored(ArrayWeight):
    """A weight that says it is stored so."""

    def stored(self) -> StoredWeight:
        raise NotImplementedError


def plan(dtype: str = "auto", tied: bool = False, **storages: str) -> Any:
    """`storages`: of weights whose names contain the key; all others are Q4_1, vectors F32."""
    program = build_program(CONFIGS["llama-tied" if tied else "llama"])
    weights = {}
    for name, spec in program.weights.items():
        found = next((storage for part, storage in storages.items() if part in name), storages.get("rest", "Q4_1"))
        weights[name] = Stored(spec, np.zeros(0, np.float32), found if len(spec.shape) == 2 else "F32")
    return CpuDevice.plan(program, weights, dtype)


@pytest.mark.parametrize(
    ("storages", "dtype", "said"),
    [
        ({}, "int4", "Q4_1"),
        ({"rest": "Q4_0", "embed": "Q8_0"}, "int4", "Q4_0, Q8_0"),
        ({"rest": "Q8_0"}, "int8", "Q8_0"),
        ({"rest": "Q8_0", "up_proj": "Q4_0"}, "int4", "Q8_0, Q4_0"),
        ({"rest": "BF16"}, "bfloat16", "BF16"),
        ({"rest": "F16"}, "float32", "F16"),
        ({"rest": "F32"}, "float32", "F32"),
        ({"rest": "BF16", "lm_head": "F32"}, "float32", "BF16, F32"),
        ({"embed": "Q6_K"}, "float32", "Q4_1, Q6_K"),
    ],
)
def test_auto_is_the_narrowest_type_without_loss_and_says_so(storages: dict[str, str], dtype: str, said: str) -> None:
    found = plan(**storages)
    assert found.dtype == dtype
    assert found.reason == f"the narrowest type that holds the file's {said} without loss"


@pytest.mark.parametrize(
    ("dtype", "storages", "reason"),
    [
        ("int4", {}, ""),
        ("int4", {"embed": "Q8_0"}, ""),
        ("int4", {"rest": "BF16"}, "rounded from the file's BF16"),
        ("int4", {"lm_head": "Q6_K"}, "rounded from the file's Q6_K"),
        ("int8", {}, ""),
        ("int8", {"rest": "BF16"}, "rounded from the file's BF16"),
        ("bfloat16", {"rest": "BF16"}, ""),
        ("float32", {"rest": "Q6_K"}, ""),
    ],
)
def test_what_was_asked_for_says_whether_it_rounds(dtype: str, storages: dict[str, str], reason: str) -> None:
    found = plan(dtype, **storages)
    assert (found.dtype, found.reason) == (dtype, reason)


def test_int4_keeps_the_ends_and_what_has_eight_bits_in_int8() -> None:
    ends = ("model.embed_tokens.weight", "lm_head.weight")
    assert {plan("int4", rest="BF16").keep[end] for end in ends} == {"int8"}
    assert {plan("int4", rest="Q4_0").keep[end] for end in ends} == {"int4"}
    assert plan("int4", tied=True, rest="F32").keep[ends[0]] == "int8"
    kept = plan("int4", rest="Q6_K", v_proj="Q8_0").keep
    assert {dtype for name, dtype in kept.items() if "v_proj" in name} == {"int8"}
    assert {dtype for name, dtype in kept.items() if "k_proj" in name} == {"int4"}


def test_matrices_of_two_types_are_not_packed_together() -> None:
    program, values = model_weights("llama")
    weights = array_weights(program, values)
    for name, weight in weights.items():
        if "v_proj" in name:
            weights[name] = ArrayWeight(weight.spec, values[name], "Q8_0")
    CpuDevice(program, weights, "int4")
    assert [(matrix.keep, len(matrix.widths)) for matrix in MODELS[-1].matrices[:4]] == [
        ("int8", 1),
        ("int4", 2),
        ("int8", 1),
        ("int4", 1),
    ]


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4.0), ("bfloat16", 2.0), ("int8", 1.13)])
def test_the_memory_that_is_checked_for_follows_the_type(dtype: str, width: float) -> None:
    program = build_program(CONFIGS["llama"])
    vectors = sum(spec.size for spec in program.weights.values() if len(spec.shape) == 1)
    expected = width * (program.parameters - vectors) + 4 * vectors
    assert plan(dtype).bytes == pytest.approx(expected, abs=1)
    assert plan("int4").bytes == pytest.approx(0.63 * (program.parameters - vectors) + 4 * vectors, abs=1)


def test_position_tables_stay_in_float32() -> None:
    program = build_program(CONFIGS["gpt2"])
    weights = {name: Stored(spec, np.zeros(0, np.float32), "F32") for name, spec in program.weights.items()}
    found = CpuDevice.plan(program, weights, "int8")
    assert "wpe.weight" not in found.keep
    assert found.keep["wte.weight"] == "int8"
