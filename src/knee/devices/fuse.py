"""Fusion: a program's operations rewritten into fewer, larger ones. For any device that has them.

Rewrites of the list that keep what a program computes:

- linear layers of the same input become one, their outputs side by side (q, k and v; gate and up): the input is read
  and, where it has to be, converted once;
- a norm or a gated activation that only feeds such a layer becomes its prologue: its result is never stored;
- or, for a device that asks for it, what comes right after such layers becomes their epilogue: a gated activation of
  two of them, or the write of queries, keys and values into the KV cache.

What may move where follows from which buffers each operation reads and writes, not from what models usually look
like: nothing moves across an operation that writes what it reads, or reads or writes what it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from knee.program import Attention, Embed, Gate, Linear, Norm, Op, Program, SelectOutputs, WriteKV

RESULT = "logits"


@dataclass(frozen=True, slots=True)
class FusedLinear:
    """Linear layers of one input, run as one; and what makes their input, where only they need it.

    All `parts` have the same `x`. Several parts have no activation and no residual. With a prologue their `x` is not a
    buffer's content: it is what the prologue would have written there. With an epilogue the parts' results are what it
    works on, and only what it writes is stored: the gated activation, or the queries, turned.
    """

    parts: tuple[Linear, ...]
    prologue: Norm | Gate | None = None
    epilogue: Gate | WriteKV | None = None

    @property
    def reads(self) -> tuple[str, ...]:
        """Buffers that it reads."""
        inputs = (self.parts[0].x,) if self.prologue is None else reads(self.prologue)
        return inputs + tuple(part.residual for part in self.parts if part.residual is not None)

    @property
    def writes(self) -> tuple[str, ...]:
        """Buffers that it writes, in the order of the parts."""
        match self.epilogue:
            case None:
                return tuple(part.out for part in self.parts)
            case Gate() as gate:
                return (gate.out,)
            case WriteKV() as write:
                return (write.q,)


FusedOp = Op | FusedLinear


def fuse(program: Program, kinds: Mapping[str, object] | None = None, epilogues: bool = False) -> tuple[FusedOp, ...]:
    """The program's operations, fused. Every linear layer comes as a `FusedLinear`, alone or not.

    A buffer that was put beside others is beside the same ones throughout. `kinds` says of weights what kind they
    are, for a device that keeps them differently: weights of two kinds do not come together. With `epilogues` keys and
    values may be in the KV cache only: for a device that attends to nothing else.
    """
    grouped = _grouped(program.ops, kinds or {})
    return tuple(_with_prologues(_with_epilogues(grouped) if epilogues else grouped, program))


def flatten(ops: Sequence[FusedOp]) -> tuple[Op, ...]:
    """The operations that fused ones stand for."""
    flat: list[Op] = []
    for op in ops:
        if not isinstance(op, FusedLinear):
            flat.append(op)
            continue
        flat += [] if op.prologue is None else [op.prologue]
        flat += op.parts
        flat += [] if op.epilogue is None else [op.epilogue]
    return tuple(flat)


def reads(op: Op | FusedLinear) -> tuple[str, ...]:
    """Buffers that an operation reads."""
    match op:
        case FusedLinear():
            return op.reads
        case Embed():
            return ()
        case Norm() | SelectOutputs():
            return (op.x,)
        case Linear():
            return (op.x,) if op.residual is None else (op.x, op.residual)
        case WriteKV() | Attention():
            return (op.q, op.k, op.v)
        case Gate():
            return (op.gate, op.up)
    raise TypeError(f"no such operation: {op}")


def writes(op: Op | FusedLinear) -> tuple[str, ...]:
    """Buffers that an operation writes; queries and keys are turned in place."""
    match op:
        case FusedLinear():
            return op.writes
        case WriteKV():
            return () if op.rope is None else (op.q, op.k)
        case Embed() | Norm() | Linear() | Attention() | Gate() | SelectOutputs():
            return (op.out,)
    raise TypeError(f"no such operation: {op}")


# --- linear layers side by side ----------------------------------------------------------------------------------


def _grouped(ops: Sequence[Op], kinds: Mapping[str, object]) -> list[FusedOp]:
    """Each linear layer together with the later ones that may as well run at its place."""
    fused: list[FusedOp] = []
    taken: set[int] = set()
    beside: dict[str, tuple[str, ...]] = {}  # a buffer -> those that it was put beside
    for place, op in enumerate(ops):
        if place in taken:
            continue
        if not isinstance(op, Linear):
            fused.append(op)
            continue
        group = {place: op} | _companions(ops, place, op, kinds)
        names = tuple(one.out for one in group.values())
        if any(beside.get(name, names) != names for name in names):
            group = {place: op}
        if len(group) > 1:
            beside |= dict.fromkeys(names, names)
        taken.update(group)
        fused.append(FusedLinear(tuple(group.values())))
    return fused


def _companions(ops: Sequence[Op], place: int, head: Linear, kinds: Mapping[str, object]) -> dict[int, Linear]:
    """Later linear layers of the same input that have no business with anything from `head` up to themselves."""
    found: dict[int, Linear] = {}
    read, written = set(reads(head)), set(writes(head))
    for later in range(place + 1, len(ops) if _plain(head) else 0):
        if head.x in written:
            break
        op = ops[later]
        if (
            isinstance(op, Linear)
            and _plain(op)
            and op.x == head.x
            and op.out not in read | written
            and kinds.get(op.weight) == kinds.get(head.weight)
        ):
            found[later] = op
        read.update(reads(op))
        written.update(writes(op))
    return found


def _plain(op: Linear) -> bool:
    return op.activation is None and op.residual is None and op.out != RESULT


# --- epilogues ---------------------------------------------------------------------------------------------------


def _with_epilogues(ops: Sequence[FusedOp]) -> list[FusedOp]:
    """Each group of layers together with the operation right behind it, if that works on just their results."""
    left: list[FusedOp | None] = list(ops)
    for place, (op, following) in enumerate(pairwise(ops)):
        if not isinstance(op, FusedLinear) or not isinstance(following, Gate | WriteKV):
            continue
        if reads(following) != op.writes:
            continue
        # Some of what the epilogue writes is written while the layers still read.
        if set(replace(op, epilogue=following).writes) & set(op.reads):
            continue
        # The layers' results are not stored: nobody but the epilogue may read them. What it writes is; and attention
        # that names keys and values finds them in the cache.
        stored, cached = (following.q, True) if isinstance(following, WriteKV) else (following.out, False)
        if any(_read_after(ops, place + 1, name, cached) for name in op.writes if name != stored):
            continue
        left[place], left[place + 1] = replace(op, epilogue=following), None
    return [op for op in left if op is not None]


# --- prologues ---------------------------------------------------------------------------------------------------


def _with_prologues(ops: Sequence[FusedOp], program: Program) -> list[FusedOp]:
    left: list[FusedOp | None] = list(ops)
    for place, op in enumerate(ops):
        if isinstance(op, FusedLinear) and (origin := _origin(left, place, op)) is not None:
            made = left[origin]
            if isinstance(made, Gate) or (isinstance(made, Norm) and _of_whole_rows(made, program)):
                left[place], left[origin] = replace(op, prologue=made), None
    return [op for op in left if op is not None]


def _of_whole_rows(norm: Norm, program: Program) -> bool:
    return program.weights[norm.weight].size == program.buffers[norm.x].width


def _origin(ops: Sequence[FusedOp | None], place: int, linear: FusedLinear) -> int | None:
    """Where the layer's input is made, if that may as well happen as part of the layer; else None."""
    x = linear.parts[0].x
    if x == RESULT or any(part.residual == x for part in linear.parts):
        return None
    # The layer must not write what its prologue reads: some of its outputs are written while others are computed.
    written = set(linear.writes)
    for origin in reversed(range(place)):
        op = ops[origin]
        if op is None:
            continue
        if x in writes(op):
            alone = x in linear.writes or not _read_after(ops, place, x)
            return origin if alone and not written & set(reads(op)) else None
        if x in reads(op):
            return None
        written.update(writes(op))
    return None


def _read_after(ops: Sequence[FusedOp | None], place: int, buffer: str, cached: bool = False) -> bool:
    """Whether the buffer's value is read after `place`, before another one takes its place.

    `cached`: it is in the KV cache, too, where attention finds it.
    """
    for op in ops[place + 1 :]:
        if op is None:
            continue
        if buffer in ((op.q,) if cached and isinstance(op, Attention) else reads(op)):
            return True
        if buffer in writes(op):
            return False
    return False
