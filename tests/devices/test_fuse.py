"""Fusion changes the list and nothing that it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest

from knee.devices.fuse import FusedLinear, FusedOp, flatten, fuse, reads, writes
from knee.models import build_program
from knee.program import (
    Attention,
    Buffer,
    Embed,
    Gate,
    Linear,
    Norm,
    Op,
    Program,
    Rope,
    SelectOutputs,
    WeightSpec,
    WriteKV,
)
from tests.devices.models import CONFIGS

ROPE = Rope((1.0,))
WIDTH = 4


def program(*ops: Op) -> Program:
    """All buffers and matrices of one width; "heads" is the weight of a norm over half a row."""
    names = {name for op in ops for name in (*reads(op), *writes(op))}
    weights = {name: WeightSpec((WIDTH, WIDTH), name) for name in "abcdw"}
    weights |= {"row": WeightSpec((WIDTH,), "row"), "heads": WeightSpec((WIDTH // 2,), "heads")}
    buffers = {name: Buffer(WIDTH) for name in names | {"logits"}}
    return Program("Test", ops, buffers, weights, 1, heads=2, kv_heads=2, head_dim=2, vocab_size=WIDTH, positions=8)


def norm(out: str, x: str, weight: str = "row") -> Norm:
    return Norm("rms", out, x, weight, 1e-5)


def fused(*ops: Op) -> list[FusedOp]:
    return list(fuse(program(*ops)))


# --- the models --------------------------------------------------------------------------------------------------


def kind(op: FusedOp) -> str:
    """ "norm>q+k+v" for a fused linear layer."""
    if not isinstance(op, FusedLinear):
        return type(op).__name__
    before = "" if op.prologue is None else f"{type(op.prologue).__name__}>"
    return before + "+".join(part.out for part in op.parts)


LLAMA_LAYER = ["Norm>q+k+v", "WriteKV", "Attention", "x", "Norm>gate+up", "Gate>x"]
QWEN3_LAYER = ["Norm>q+k+v", "Norm", "Norm", "WriteKV", "Attention", "x", "Norm>gate+up", "Gate>x"]
GPT2_LAYER = ["Norm>q+k+v", "WriteKV", "Attention", "x", "Norm>inner", "x"]
LAYERS = {"llama": LLAMA_LAYER, "qwen2": LLAMA_LAYER, "qwen3": QWEN3_LAYER, "gpt2": GPT2_LAYER}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_layer_of_each_model_becomes_few_operations(name: str) -> None:
    model = build_program(CONFIGS[name])
    expected = ["Embed", *LAYERS[name.split("-")[0]] * model.layers, "SelectOutputs", "Norm>logits"]
    assert [kind(op) for op in fuse(model)] == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_flattened_again_the_models_are_what_they_were(name: str) -> None:
    model = build_program(CONFIGS[name])
    assert flatten(fuse(model)) == model.ops


def test_weights_of_another_kind_stay_apart() -> None:
    model = build_program(CONFIGS["llama-tied"])
    kinds = {name: "int8" if ".v_proj." in name else "int4" for name in model.weights}
    names = [kind(op) for op in fuse(model, kinds)]
    assert names[1:5] == ["Norm", "q+k", "v", "WriteKV"]


# --- linear layers side by side ----------------------------------------------------------------------------------


def test_layers_of_one_input_come_together_over_what_does_not_concern_them() -> None:
    a, b, other = Linear("p", "x", "a"), Linear("q", "x", "b", bias="row"), norm("r", "y")
    assert fused(a, other, b) == [FusedLinear((a, b)), other]


@pytest.mark.parametrize(
    "between",
    [
        pytest.param(SelectOutputs("x", "y"), id="x is overwritten"),
        pytest.param(norm("q", "y"), id="the second one's output is written before"),
        pytest.param(norm("y", "q"), id="the second one's output is read before"),
        pytest.param(WriteKV(0, "x", "k", "v", ROPE), id="x is turned"),
        pytest.param(WriteKV(0, "q", "k", "v"), id="the second one's output is stored before"),
    ],
)
def test_layers_stay_apart_where_something_comes_between(between: Op) -> None:
    a, b = Linear("p", "x", "a"), Linear("q", "x", "b")
    assert fused(a, between, b) == [FusedLinear((a,)), between, FusedLinear((b,))]


def test_keys_that_are_not_turned_do_not_separate() -> None:
    a, write, b = Linear("p", "x", "a"), WriteKV(0, "x", "k", "v"), Linear("q", "x", "b")
    assert fused(a, write, b) == [FusedLinear((a, b)), write]


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (Linear("p", "x", "a", activation="relu"), Linear("q", "x", "b")),
        (Linear("p", "x", "a"), Linear("q", "x", "b", residual="y")),
        (Linear("p", "x", "a"), Linear("p", "x", "b")),
        (Linear("x", "x", "a"), Linear("q", "x", "b")),
        (Linear("p", "x", "a"), Linear("x", "x", "b")),
        (Linear("p", "x", "a"), Linear("q", "y", "b")),
        (Linear("p", "x", "a"), Linear("logits", "x", "b")),
    ],
)
def test_layers_that_are_not_alike_or_in_each_other_s_way_stay_apart(a: Linear, b: Linear) -> None:
    assert fused(a, b) == [FusedLinear((a,)), FusedLinear((b,))]


def test_a_buffer_is_beside_the_same_ones_throughout() -> None:
    first = [Linear("p", "x", "a"), Linear("q", "x", "b")]
    other = [Linear("q", "y", "a"), Linear("r", "y", "b")]
    again = [Linear("p", "y", "c"), Linear("q", "y", "d")]
    apart = [FusedLinear((one,)) for one in other]
    assert fused(*first, *other, SelectOutputs("y", "z"), *again) == [
        FusedLinear(tuple(first)),
        *apart,
        SelectOutputs("y", "z"),
        FusedLinear(tuple(again)),
    ]


# --- prologues ---------------------------------------------------------------------------------------------------

LINEAR = Linear("p", "n", "a")
NORM, GATE = norm("n", "x"), Gate("n", "x", "y", "silu")


@pytest.mark.parametrize("made", [NORM, GATE], ids=["norm", "gate"])
def test_what_only_feeds_a_layer_becomes_its_prologue(made: Norm | Gate) -> None:
    unconcerned = Linear("r", "z", "b", residual="r")
    assert fused(made, unconcerned, LINEAR) == [FusedLinear((unconcerned,)), FusedLinear((LINEAR,), made)]
    last = Linear("n", "n", "a")
    assert fused(made, last) == [FusedLinear((last,), made)]


@pytest.mark.parametrize("made", [NORM, GATE], ids=["norm", "gate"])
@pytest.mark.parametrize(
    "rest",
    [
        pytest.param([LINEAR, norm("z", "n")], id="read later"),
        pytest.param([norm("z", "n"), LINEAR], id="read before"),
        pytest.param([norm("x", "z"), LINEAR], id="its input is overwritten"),
        pytest.param([Linear("p", "n", "a", residual="n")], id="it is the residual too"),
        pytest.param([Linear("x", "n", "a")], id="the layer overwrites its input"),
        pytest.param([LINEAR, Linear("q", "n", "b", activation="relu")], id="two layers"),
        pytest.param([LINEAR, WriteKV(0, "n", "k", "v", ROPE)], id="turned later"),
        pytest.param([SelectOutputs("n", "z"), LINEAR], id="made anew"),
    ],
)
def test_what_others_need_too_is_no_prologue(made: Norm | Gate, rest: list[Op]) -> None:
    assert fused(made, *rest)[0] == made
    assert all(op.prologue is None for op in fused(made, *rest) if isinstance(op, FusedLinear))


def test_a_norm_in_place_is_a_prologue_where_nobody_else_reads_it() -> None:
    inplace = norm("n", "n")
    assert fused(inplace, LINEAR, SelectOutputs("n", "z")) == [FusedLinear((LINEAR,), inplace), SelectOutputs("n", "z")]
    assert fused(inplace, Linear("n", "n", "a")) == [inplace, FusedLinear((Linear("n", "n", "a"),))]


def test_norms_of_heads_are_no_prologues() -> None:
    heads = norm("n", "x", "heads")
    assert fused(heads, LINEAR) == [heads, FusedLinear((LINEAR,))]


# --- any program -------------------------------------------------------------------------------------------------

Values = dict[str, Any]


def run(ops: Sequence[FusedOp]) -> tuple[Any, list[Any]]:
    """What the program computes, as a formula; and what was written into the KV cache, in order.

    A fused layer computes its prologue for each part anew, after the parts before it have been written: the least
    that one must expect of a device that works on parts of the output one after another.
    """
    values: Values = {name: name for name in "abcd"}
    cache: list[Any] = []
    for op in ops:
        if isinstance(op, FusedLinear):
            for part in op.parts:
                x = values[part.x] if op.prologue is None else apply(op.prologue, values, cache)
                values[part.out] = multiply(part, x, values)
        elif isinstance(op, WriteKV):
            if op.rope:
                values |= {name: ("turn", values[name]) for name in (op.q, op.k)}
            cache.append((values[op.k], values[op.v]))
        else:
            values[op.out] = apply(op, values, cache)  # type: ignore[attr-defined]
    return values["logits"], cache


def apply(op: Op, values: Values, cache: list[Any]) -> Any:
    match op:
        case Linear():
            return multiply(op, values[op.x], values)
        case Attention():
            return ("attention", *(values[name] for name in reads(op)), len(cache))
        case _:
            return (type(op).__name__, getattr(op, "weight", None), *(values[name] for name in reads(op)))


def multiply(op: Linear, x: Any, values: Values) -> Any:
    return ("linear", op.weight, op.activation, x, op.residual and values[op.residual])


def random_program(rng: Random) -> Program:
    """Up to 14 operations over four buffers, half of them linear layers; then all buffers are read, or only one."""

    def buffer() -> str:
        return rng.choice("abcd")

    makers: list[Callable[[], Op]] = [
        lambda: norm(buffer(), buffer(), rng.choice(["row", "row", "heads"])),
        lambda: Gate(buffer(), buffer(), buffer(), "silu"),
        lambda: Attention(0, buffer(), buffer(), buffer(), buffer(), 1.0),
        lambda: WriteKV(0, buffer(), buffer(), buffer(), rng.choice([None, ROPE])),
        lambda: SelectOutputs(buffer(), buffer()),
    ]

    def multiplied() -> Op:
        activation, residual = rng.choice([None, None, None, "relu"]), rng.choice([None, None, None, buffer()])
        return Linear(buffer(), buffer(), rng.choice("ab"), None, activation, residual)

    ops = [multiplied() if rng.random() < 0.5 else rng.choice(makers)() for _ in range(rng.randint(3, 14))]
    read_all = [Attention(0, "a", "a", "b", "c", 1.0), Gate("a", "a", "d", "silu")]
    return program(*ops, *rng.choice([[], read_all]), Linear("logits", buffer(), "w"))


@pytest.mark.parametrize("seed", range(4))
def test_any_program_computes_what_it_did_before(seed: int) -> None:
    """Plain random programs: searching for small ones, hypothesis finds fewer of the dangerous ones."""
    rng = Random(seed)
    for _ in range(1500):
        whole = random_program(rng)
        ops = fuse(whole)
        assert run(ops) == run(whole.ops) == run(flatten(ops)), whole.ops


def test_the_program_s_other_operations_are_known() -> None:
    assert reads(Embed("x", "w")) == ()
    assert writes(Embed("x", "w")) == ("x",)
    with pytest.raises(TypeError):
        reads("no operation")  # type: ignore[arg-type]
