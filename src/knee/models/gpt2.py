"""GPT-2 (Radford et al. 2019) as a program: learned positions, layer norms with biases, one plain MLP a layer.

Checkpoints keep its matrices as (inputs, outputs), and q, k and v as one tensor; the program sees three weights as
(outputs, inputs), like those of every other model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from knee.errors import ModelLoadError
from knee.models.builder import Builder
from knee.models.config import Config
from knee.program import Activation, Attention, Embed, Program, SelectOutputs, WriteKV

ARCHITECTURES = ("GPT2LMHeadModel",)


@dataclass(frozen=True, slots=True)
class Gpt2Config:
    """What distinguishes one GPT-2 from another."""

    hidden: int
    inner: int
    layers: int
    heads: int
    vocab: int
    positions: int
    eps: float
    activation: Activation
    tied: bool

    @classmethod
    def read(cls, raw: Mapping[str, Any]) -> Gpt2Config:
        """From the keys of a `config.json`. Raises `ModelLoadError` for what is missing, odd or not supported."""
        config = Config(raw)
        config.refuse("scale_attn_weights", True)
        config.refuse("scale_attn_by_inverse_layer_idx", False)
        config.refuse("add_cross_attention", False)
        hidden, heads = config.integer("n_embd"), config.integer("n_head")
        if hidden % heads:
            raise ModelLoadError(f"config.json: n_embd {hidden} is no multiple of n_head {heads}")
        return cls(
            hidden=hidden,
            inner=config.integer("n_inner", default=4 * hidden),
            layers=config.layers("n_layer"),
            heads=heads,
            vocab=config.integer("vocab_size"),
            positions=config.integer("n_positions"),
            eps=config.number("layer_norm_epsilon", default=1e-5),
            activation=config.activation("activation_function", default="gelu_new"),
            tied=config.flag("tie_word_embeddings", default=True),
        )


def build(architecture: str, raw: Mapping[str, Any]) -> Program:
    """The program of a GPT-2."""
    model, b = Gpt2Config.read(raw), Builder()
    b.weight("wte.weight", model.vocab, model.hidden)
    b.weight("wpe.weight", model.positions, model.hidden)
    b.ops.append(Embed(b.buffer("x", model.hidden), "wte.weight", "wpe.weight"))
    for layer in range(model.layers):
        _attention(b, model, layer)
        _mlp(b, model, f"h.{layer}")
    b.ops.append(SelectOutputs(b.buffer("last", model.hidden, "outputs"), "x"))
    b.layer_norm("last_normed", "last", "ln_f", model.eps)
    head = "wte.weight" if model.tied else b.weight("lm_head.weight", model.vocab, model.hidden)
    b.linear("logits", "last_normed", head)
    return b.program(
        architecture,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.heads,
        head_dim=model.hidden // model.heads,
        vocab_size=model.vocab,
        positions=model.positions,
    )


def _attention(b: Builder, model: Gpt2Config, layer: int) -> None:
    module, width = f"h.{layer}.attn", model.hidden
    b.layer_norm("normed", "x", f"h.{layer}.ln_1", model.eps)
    for i, out in enumerate("qkv"):
        part = (i * width, (i + 1) * width)
        weight = b.weight(
            f"{module}.{out}.weight", width, width, source=f"{module}.c_attn.weight", transposed=True, part=part
        )
        bias = b.weight(f"{module}.{out}.bias", width, source=f"{module}.c_attn.bias", part=part)
        b.linear(out, "normed", weight, bias)
    b.ops.append(WriteKV(layer, "q", "k", "v"))
    scale = 1 / math.sqrt(width // model.heads)
    b.ops.append(Attention(layer, b.buffer("attended", width), "q", "k", "v", scale))
    _linear(b, "x", "attended", f"{module}.c_proj", (width, width), residual="x")


def _mlp(b: Builder, model: Gpt2Config, prefix: str) -> None:
    b.layer_norm("normed", "x", f"{prefix}.ln_2", model.eps)
    up, down = (model.inner, model.hidden), (model.hidden, model.inner)
    _linear(b, "inner", "normed", f"{prefix}.mlp.c_fc", up, activation=model.activation)
    _linear(b, "x", "inner", f"{prefix}.mlp.c_proj", down, residual="x")


def _linear(
    b: Builder,
    out: str,
    x: str,
    module: str,
    shape: tuple[int, int],
    activation: Activation | None = None,
    residual: str | None = None,
) -> None:
    weight = b.weight(f"{module}.weight", *shape, transposed=True)
    b.linear(out, x, weight, b.weight(f"{module}.bias", shape[0]), activation, residual)
