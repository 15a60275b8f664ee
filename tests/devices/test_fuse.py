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


def fused(*ops: Op, epilogues: bool = False) -> list[FusedOp]:
    return list(fuse(program(*ops), epilogues=epilogues))


# --- the models --------------------------------------------------------------------------------------------------


def kind(op: FusedOp) -> str:
    """ "norm>q+k+v" for a fused linear layer."""
    if not isinstance(op, FusedLinear):
        return type(op).__name__
    before = "" if op.prologue is None else f"{type(op.prologue).__name__}>"
    behind = "" if op.epilogue is None else f">{type(op.epilogue).__name__}"
    return before + "+".join(part.out for part in op.parts) + behind


LLAMA_LAYER = ["Norm>q+k+v", "WriteKV", "Attention", "x", "Norm>gate+up", "Gate>x"]
QWEN3_LAYER = ["Norm>q+k+v", "Norm", "Norm", "WriteKV", "Attention", "x", "Norm>gate+up", "Gate>x"]
GPT2_LAYER = ["Norm>q+k+v", "WriteKV", "Attention", "x", "Norm>inner", "x"]
LAYERS = {"llama": LLAMA_LAYER, "qwen2": LLAMA_LAYER, "qwen3": QWEN3_LAYER, "gpt2": GPT2_LAYER}

LLAMA_EPILOGUES = ["Norm>q+k+v>WriteKV", "Attention", "x", "Norm>gate+up>Gate", "x"]
QWEN3_EPILOGUES = ["Norm>q+k+v", "Norm", "Norm", "WriteKV", "Attention", "x", "Norm>gate+up>Gate", "x"]
GPT2_EPILOGUES = ["Norm>q+k+v>WriteKV", "Attention", "x", "Norm>inner", "x"]
WITH_EPILOGUES = {
    "llama": LLAMA_EPILOGUES,
    "qwen2": LLAMA_EPILOGUES,
    "qwen3": QWEN3_EPILOGUES,
    "gpt2": GPT2_EPILOGUES,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_layer_of_each_model_becomes_few_operations(name: str) -> None:
    model = build_program(CONFIGS[name])
    expected = ["Embed", *LAYERS[name.split("-")[0]] * model.layers, "SelectOutputs", "Norm>logits"]
    assert [kind(op) for op in fuse(model)] == expected


@pytest.mark.parametrize("name", CONFIGS)
def test_with_epilogues_a_layer_becomes_fewer_still(name: str) -> None:
    model = build_program(CONFIGS[name])
    expected = ["Embed", *WITH_EPILOGUES[name.split("-")[0]] * model.layers, "SelectOutputs", "Norm>logits"]
    assert [kind(op) for op in fuse(model, epilogues=True)] == expected


@pytest.mark.parametrize("epilogues", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_flattened_again_the_models_are_what_they_were(name: str, epilogues: bool) -> None:
    model = build_program(CONFIGS[name])
    assert flatten(fuse(model, epilogues=epilogues)) == model.ops


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


# --- epilogues ---------------------------------------------------------------------------------------------------

PAIR = (Linear("p", "x", "a"), Linear("q", "x", "b"))
TRIPLE = (*PAIR, Linear("r", "x", "c"))
PAIR_GATE, TRIPLE_WRITE = Gate("y", "p", "q", "silu"), WriteKV(0, "p", "q", "r", ROPE)
LATER = norm("z", "y")


@pytest.mark.parametrize("following", [PAIR_GATE, Gate("p", "p", "q", "silu"), Gate("q", "p", "q", "relu")])
def test_a_gate_of_just_the_layers_before_it_is_their_epilogue(following: Gate) -> None:
    read = norm("y", following.out)
    assert fused(*PAIR, following, read, epilogues=True) == [FusedLinear(PAIR, epilogue=following), read]
    assert FusedLinear(PAIR, epilogue=following).writes == (following.out,)
    assert fused(*PAIR, following, read) == [FusedLinear(PAIR), following, read]


@pytest.mark.parametrize("rope", [None, ROPE])
def test_a_write_of_just_the_layers_before_it_is_their_epilogue(rope: Rope | None) -> None:
    write = WriteKV(0, "p", "q", "r", rope)
    attention = Attention(0, "y", "p", "q", "r", 1.0)  # finds keys and values in the cache
    assert fused(*TRIPLE, write, attention, epilogues=True) == [FusedLinear(TRIPLE, epilogue=write), attention]
    assert FusedLinear(TRIPLE, epilogue=write).writes == ("p",)


@pytest.mark.parametrize(
    ("layers", "following"),
    [
        pytest.param(PAIR, Gate("y", "q", "p", "silu"), id="in another order"),
        pytest.param(PAIR, Gate("y", "p", "p", "silu"), id="one of them twice"),
        pytest.param(PAIR, Gate("y", "p", "z", "silu"), id="of something else, too"),
        pytest.param(TRIPLE, PAIR_GATE, id="of some of them only"),
        pytest.param(TRIPLE, WriteKV(0, "q", "p", "r", ROPE), id="a write in another order"),
        pytest.param(PAIR, WriteKV(0, "p", "q", "z", ROPE), id="a write of something else, too"),
        pytest.param(PAIR, norm("y", "p"), id="a norm"),
    ],
)
def test_what_does_not_work_on_just_their_results_is_no_epilogue(layers: tuple[Linear, ...], following: Op) -> None:
    assert fused(*layers, following, LATER, epilogues=True)[:2] == [FusedLinear(layers), following]


@pytest.mark.parametrize(
    "rest",
    [
        pytest.param([norm("z", "p")], id="the first one"),
        pytest.param([norm("z", "q")], id="the second one"),
        pytest.param([norm("z", "y"), Linear("z", "y", "c", residual="q")], id="as a residual, later"),
        pytest.param([Gate("z", "z", "p", "silu")], id="by another gate"),
    ],
)
def test_layers_whose_results_are_read_again_have_no_gate_as_epilogue(rest: list[Op]) -> None:
    assert fused(*PAIR, PAIR_GATE, *rest, epilogues=True)[:2] == [FusedLinear(PAIR), PAIR_GATE]


@pytest.mark.parametrize("read", ["q", "r"])
def test_keys_and_values_that_others_than_attention_read_are_stored(read: str) -> None:
    write = WriteKV(0, "p", "q", "r", ROPE)
    for later in (norm("z", read), Linear("z", "y", "d", residual=read), Attention(0, "z", read, "y", "y", 1.0)):
        assert fused(*TRIPLE, write, later, epilogues=True)[:2] == [FusedLinear(TRIPLE), write]


def test_results_that_are_written_anew_before_they_are_read_do_not_count() -> None:
    rest = [SelectOutputs("p", "y"), SelectOutputs("q", "y"), Gate("z", "p", "q", "silu")]
    assert fused(*PAIR, PAIR_GATE, *rest, epilogues=True)[0] == FusedLinear(PAIR, epilogue=PAIR_GATE)


def test_a_gate_in_the_place_of_what_is_read_again_is_an_epilogue() -> None:
    inplace = Gate("p", "p", "q", "silu")
    assert fused(*PAIR, inplace, norm("z", "p"), epilogues=True)[0] == FusedLinear(PAIR, epilogue=inplace)
    assert fused(*PAIR, inplace, norm("z", "q"), epilogues=True)[:2] == [FusedLinear(PAIR), inplace]


def test_only_what_comes_right_behind_is_an_epilogue() -> None:
    between = norm("z", "y")
    assert fused(*PAIR, between, PAIR_GATE, epilogues=True) == [FusedLinear(PAIR), between, PAIR_GATE]


@pytest.mark.parametrize("more", [{"activation": "relu"}, {"residual": "z"}])
def test_a_layer_that_finishes_by_itself_has_no_epilogue(more: dict[str, Any]) -> None:
    layers = (Linear("p", "x", "a", **more), Linear("q", "x", "b"))
    assert fused(*layers, PAIR_GATE, LATER, epilogues=True)[2] == PAIR_GATE


def test_a_layer_has_a_prologue_and_an_epilogue() -> None:
    before = norm("x", "d")
    assert fused(before, *PAIR, PAIR_GATE, norm("d", "y"), epilogues=True)[0] == FusedLinear(PAIR, before, PAIR_GATE)


@pytest.mark.parametrize("out", ["d", "x"])
def test_an_epilogue_writes_nothing_that_the_layers_or_their_prologue_read(out: str) -> None:
    """Some of the results are written while others are computed."""
    before, gate = norm("x", "d"), Gate(out, "p", "q", "silu")
    found = fused(before, *PAIR, gate, norm("z", out), epilogues=True)
    assert found[:2] == (
        [before, FusedLinear(PAIR, epilogue=gate)] if out == "d" else [FusedLinear(PAIR, before), gate]
    )


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
FROM_CACHE = 1  # the layer of an attention that takes keys and values from the cache alone


def run(ops: Sequence[FusedOp]) -> tuple[Any, list[Any]]:
    """What the program computes, as a formula; and what was written into the KV cache, in order.

    A fused layer computes its prologue for each part anew, after the parts before it have been written: the least
    that one must expect of a device that works on parts of the output one after another. One with an epilogue stores
    what that writes and leaves nothing else that could be read.
    """
    values: Values = {name: name for name in "abcd"}
    cache: list[Any] = []
    for op in ops:
        if isinstance(op, FusedLinear) and op.epilogue is not None:
            with_epilogue(op, op.epilogue, values, cache)
        elif isinstance(op, FusedLinear):
            for part in op.parts:
                x = values[part.x] if op.prologue is None else apply(op.prologue, values, cache)
                values[part.out] = multiply(part, x, values)
        elif isinstance(op, WriteKV):
            turn_and_write(op, values, cache)
        else:
            values[op.out] = apply(op, values, cache)  # type: ignore[attr-defined]
    return values["logits"], cache


def with_epilogue(op: FusedLinear, epilogue: Gate | WriteKV, values: Values, cache: list[Any]) -> None:
    """Only what the epilogue writes is stored, some of it while the later parts are computed."""
    made: Values = {}
    for part in op.parts:
        x = values[part.x] if op.prologue is None else apply(op.prologue, values, cache)
        made[part.out] = multiply(part, x, values)
        values |= dict.fromkeys(op.writes, "some of it is new")
    values |= dict.fromkeys([part.out for part in op.parts], "not stored")
    if isinstance(epilogue, WriteKV):
        turn_and_write(epilogue, made, cache)
        values[epilogue.q] = made[epilogue.q]
    else:
        values[epilogue.out] = apply(epilogue, made, cache)


def turn_and_write(op: WriteKV, values: Values, cache: list[Any]) -> None:
    if op.rope:
        values |= {name: ("turn", values[name]) for name in (op.q, op.k)}
    cache.append((values[op.k], values[op.v]))


def apply(op: Op, values: Values, cache: list[Any]) -> Any:
    match op:
        case Linear():
            return multiply(op, values[op.x], values)
        case Attention() if op.layer == FROM_CACHE:
            return ("attention", values[op.q], tuple(cache))
        case Attention():
            return ("attention", *(values[name] for name in reads(op)), len(cache))
        case _:
            return (type(op).__name__, getattr(op, "weight", None), *(values[name] for name in reads(op)))


def multiply(op: Linear, x: Any, values: Values) -> Any:
    return ("linear", op.weight, op.activation, x, op.residual and values[op.residual])


def random_program(rng: Random, layer: int = 0) -> Program:
    """Up to 14 operations over four buffers, half of them linear layers; then all buffers are read, or only one."""

    def buffer() -> str:
        return rng.choice("abcd")

    makers: list[Callable[[], Op]] = [
        lambda: norm(buffer(), buffer(), rng.choice(["row", "row", "heads"])),
        lambda: Gate(buffer(), buffer(), buffer(), "silu"),
        lambda: Attention(layer, buffer(), buffer(), buffer(), buffer(), 1.0),
        lambda: WriteKV(0, buffer(), buffer(), buffer(), rng.choice([None, ROPE])),
        lambda: SelectOutputs(buffer(), buffer()),
    ]

    def multiplied() -> Op:
        activation, residual = rng.choice([None, None, None, "relu"]), rng.choice([None, None, None, buffer()])
        return Linear(buffer(), buffer(), rng.choice("ab"), None, activation, residual)

    def side_by_side() -> list[Op]:
        """What may have an epilogue, and often one that works on just that."""
        names = rng.sample("abcd", rng.choice([2, 3]))
        x = buffer()
        layers: list[Op] = [Linear(name, x, rng.choice("ab")) for name in names]
        behind = Gate(buffer(), *names, "silu") if len(names) == 2 else WriteKV(0, *names, rng.choice([None, ROPE]))
        return [*layers, behind]

    def some() -> list[Op]:
        if layer == FROM_CACHE and rng.random() < 0.3:
            return side_by_side()
        return [multiplied() if rng.random() < 0.5 else rng.choice(makers)()]

    ops = [op for _ in range(rng.randint(3, 14)) for op in some()]
    read_all = [Attention(layer, "a", "a", "b", "c", 1.0), Gate("a", "a", "d", "silu")]
    return program(*ops, *rng.choice([[], read_all]), Linear("logits", buffer(), "w"))


@pytest.mark.parametrize("seed", range(4))
def test_any_program_computes_what_it_did_before(seed: int) -> None:
    """Plain random programs: searching for small ones, hypothesis finds fewer of the dangerous ones."""
    rng = Random(seed)
    for _ in range(1500):
        whole = random_program(rng)
        ops = fuse(whole)
        assert run(ops) == run(whole.ops) == run(flatten(ops)), whole.ops


@pytest.mark.parametrize("seed", range(4))
def test_any_program_computes_what_it_did_before_with_epilogues(seed: int) -> None:
    rng, fused_ones = Random(seed), 0
    for _ in range(1500):
        whole = random_program(rng, FROM_CACHE)
        ops = fuse(whole, epilogues=True)
        assert run(ops) == run(whole.ops) == run(flatten(ops)), whole.ops
        fused_ones += sum(isinstance(op, FusedLinear) and op.epilogue is not None for op in ops)
    assert fused_ones > 100


def test_the_program_s_other_operations_are_known() -> None:
    assert reads(Embed("x", "w")) == ()
    assert writes(Embed("x", "w")) == ("x",)
    with pytest.raises(TypeError):
        reads("no operation")  # type: ignore[arg-type]
