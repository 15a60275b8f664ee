"""The Llama family as a program: Llama, Qwen2 (biases on q, k, v) and Qwen3 (norms on the heads of q and k).

A layer: norm, q/k/v projections, rotary positions, attention over the KV cache with shared heads (GQA, Ainslie et
al. 2023), output projection added to the stream; norm, gated MLP, added to the stream. Touvron et al. 2023.
Weight names are those of Hugging Face checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from knee.errors import ModelLoadError
from knee.models.builder import Builder
from knee.models.config import Config
from knee.models.rope import read_rope
from knee.program import Activation, Attention, Embed, Gate, Program, Rope, SelectOutputs, WriteKV

_LARGEST_HEAD = 4096  # far above any model's; bounds what a damaged config makes us build

ARCHITECTURES = ("LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """What distinguishes one model of the family from another."""

    architecture: str
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    positions: int
    eps: float
    activation: Activation
    rope: Rope
    tied: bool
    qkv_bias: bool
    output_bias: bool
    mlp_bias: bool
    head_norms: bool

    @classmethod
    def read(cls, architecture: str, raw: Mapping[str, Any]) -> LlamaConfig:
        """From the keys of a `config.json`. Raises `ModelLoadError` for what is missing, odd or not supported."""
        config = Config(raw)
        _refuse_unsupported(config)
        heads, hidden = config.integer("num_attention_heads"), config.integer("hidden_size")
        kv_heads = config.integer("num_key_value_heads", default=heads)
        head_dim = _head_dim(config, hidden, heads)
        if heads % kv_heads:
            raise ModelLoadError(f"config.json: {heads} attention heads cannot share {kv_heads} key/value heads")
        attention_bias = config.flag("attention_bias", default=False)
        return cls(
            architecture=architecture,
            hidden=hidden,
            intermediate=config.integer("intermediate_size"),
            layers=config.layers("num_hidden_layers"),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab=config.integer("vocab_size"),
            positions=config.integer("max_position_embeddings"),
            eps=config.number("rms_norm_eps", default=1e-6),
            activation=config.activation("hidden_act", default="silu"),
            rope=read_rope(config, head_dim),
            tied=config.flag("tie_word_embeddings", default=False),
            qkv_bias=attention_bias or architecture == "Qwen2ForCausalLM",
            output_bias=attention_bias and architecture != "Qwen2ForCausalLM",
            mlp_bias=config.flag("mlp_bias", default=False),
            head_norms=architecture == "Qwen3ForCausalLM",
        )


def _head_dim(config: Config, hidden: int, heads: int) -> int:
    if not config.has("head_dim") and hidden % heads:
        raise ModelLoadError(f"config.json: hidden_size {hidden} is no multiple of {heads} attention heads")
    head_dim = config.integer("head_dim", default=hidden // heads or None)
    if head_dim % 2 or head_dim > _LARGEST_HEAD:
        raise ModelLoadError(
            f"config.json: head_dim is {head_dim}: rotary positions need an even one, at most {_LARGEST_HEAD}"
        )
    return head_dim


def _refuse_unsupported(config: Config) -> None:
    config.refuse("partial_rotary_factor", 1.0)
    config.refuse("use_sliding_window", False)
    layer_types = config.raw.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise ModelLoadError(f"config.json: layer_types is {str(layer_types)[:80]}: knee supports only full_attention")


def build(architecture: str, raw: Mapping[str, Any]) -> Program:
    """The program of one model of the family."""
    model, b = LlamaConfig.read(architecture, raw), Builder()
    b.weight("model.embed_tokens.weight", model.vocab, model.hidden)
    b.ops.append(Embed(b.buffer("x", model.hidden), "model.embed_tokens.weight"))
    for layer in range(model.layers):
        _attention(b, model, layer)
        _mlp(b, model, f"model.layers.{layer}")
    b.ops.append(SelectOutputs(b.buffer("last", model.hidden, "outputs"), "x"))
    b.rms_norm("last_normed", "last", "model.norm.weight", model.eps)
    head = "model.embed_tokens.weight" if model.tied else b.weight("lm_head.weight", model.vocab, model.hidden)
    b.linear("logits", "last_normed", head)
    return b.program(
        architecture,
        layers=model.layers,
        heads=model.heads,
        kv_heads=model.kv_heads,
        head_dim=model.head_dim,
        vocab_size=model.vocab,
        positions=model.positions,
    )


def _attention(b: Builder, model: LlamaConfig, layer: int) -> None:
    prefix = f"model.layers.{layer}"
    module = f"{prefix}.self_attn"
    q_width, kv_width = model.heads * model.head_dim, model.kv_heads * model.head_dim
    b.rms_norm("normed", "x", f"{prefix}.input_layernorm.weight", model.eps)
    for out, width in (("q", q_width), ("k", kv_width), ("v", kv_width)):
        _linear(b, out, "normed", f"{module}.{out}_proj", (width, model.hidden), model.qkv_bias)
    if model.head_norms:
        b.rms_norm("q", "q", f"{module}.q_norm.weight", model.eps, width=model.head_dim)
        b.rms_norm("k", "k", f"{module}.k_norm.weight", model.eps, width=model.head_dim)
    b.ops.append(WriteKV(layer, "q", "k", "v", model.rope))
    scale = 1 / math.sqrt(model.head_dim)
    b.ops.append(Attention(layer, b.buffer("attended", q_width), "q", "k", "v", scale))
    _linear(b, "x", "attended", f"{module}.o_proj", (model.hidden, q_width), model.output_bias, residual="x")


def _mlp(b: Builder, model: LlamaConfig, prefix: str) -> None:
    module, up = f"{prefix}.mlp", (model.intermediate, model.hidden)
    b.rms_norm("normed", "x", f"{prefix}.post_attention_layernorm.weight", model.eps)
    _linear(b, "gate", "normed", f"{module}.gate_proj", up, model.mlp_bias)
    _linear(b, "up", "normed", f"{module}.up_proj", up, model.mlp_bias)
    b.ops.append(Gate(b.buffer("gated", model.intermediate), "gate", "up", model.activation))
    down = (model.hidden, model.intermediate)
    _linear(b, "x", "gated", f"{module}.down_proj", down, model.mlp_bias, residual="x")


def _linear(
    b: Builder,
    out: str,
    x: str,
    module: str,
    shape: tuple[int, int],
    with_bias: bool,
    residual: str | None = None,
) -> None:
    weight = b.weight(f"{module}.weight", *shape)
    bias = b.weight(f"{module}.bias", shape[0]) if with_bias else None
    b.linear(out, x, weight, bias, residual=residual)
