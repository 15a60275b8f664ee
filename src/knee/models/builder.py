"""Collects a program while a model is being written down: operations in order, buffers and weights by name."""

from __future__ import annotations

from dataclasses import dataclass, field

from knee.program import Activation, Buffer, Linear, Norm, Op, Program, RowsOf, WeightSpec


@dataclass
class Builder:
    """What models/ write into; `program` makes the result."""

    ops: list[Op] = field(default_factory=list)
    buffers: dict[str, Buffer] = field(default_factory=dict)
    weights: dict[str, WeightSpec] = field(default_factory=dict)

    def buffer(self, name: str, width: int, rows: RowsOf = "tokens") -> str:
        """Declare a buffer, once or again with the same shape."""
        made = Buffer(width, rows)
        if self.buffers.setdefault(name, made) != made:
            raise ValueError(f"buffer {name} has two shapes: {self.buffers[name]} and {made}")
        return name

    def weight(
        self,
        name: str,
        *shape: int,
        source: str | None = None,
        transposed: bool = False,
        part: tuple[int, int] | None = None,
    ) -> str:
        """Declare a weight; `source` is its tensor in the checkpoint where that has another name."""
        self.weights[name] = WeightSpec(shape, source or name, transposed, part)
        return name

    def rms_norm(self, out: str, x: str, weight: str, eps: float, width: int | None = None) -> None:
        """Normalize x over groups of `width` columns, by default the whole row."""
        size = width or self.buffers[x].width
        self.ops.append(Norm("rms", self._like(out, x), x, self.weight(weight, size), eps))

    def layer_norm(self, out: str, x: str, module: str, eps: float) -> None:
        """Normalize x with the weight and bias of `module`."""
        size = self.buffers[x].width
        weight, bias = self.weight(f"{module}.weight", size), self.weight(f"{module}.bias", size)
        self.ops.append(Norm("layer", self._like(out, x), x, weight, eps, bias))

    def linear(
        self,
        out: str,
        x: str,
        weight: str,
        bias: str | None = None,
        activation: Activation | None = None,
        residual: str | None = None,
    ) -> None:
        """A linear layer with declared weights; `out` gets as many columns as the weight has outputs."""
        self.buffer(out, self.weights[weight].shape[0], self.buffers[x].rows)
        self.ops.append(Linear(out, x, weight, bias, activation, residual))

    def program(
        self,
        architecture: str,
        *,
        layers: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        vocab_size: int,
        positions: int,
    ) -> Program:
        """All that was written, as a program."""
        return Program(
            architecture,
            tuple(self.ops),
            self.buffers,
            self.weights,
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=vocab_size,
            positions=positions,
        )

    def _like(self, out: str, x: str) -> str:
        return self.buffer(out, self.buffers[x].width, self.buffers[x].rows)
