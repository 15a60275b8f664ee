"""Small models of every architecture and kind, as configs of Hugging Face; odd sizes wherever they are allowed."""

from __future__ import annotations

from typing import Any

VOCAB = 61

_LLAMA: dict[str, Any] = {
    "hidden_size": 42,
    "intermediate_size": 70,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 10,
    "vocab_size": VOCAB,
    "max_position_embeddings": 64,
}
_GPT2: dict[str, Any] = {"n_embd": 36, "n_inner": 50, "n_layer": 2, "n_head": 3, "vocab_size": VOCAB, "n_positions": 64}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def _config(architecture: str, base: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {"architectures": [architecture], **base, **values}


CONFIGS = {
    "llama": _config("LlamaForCausalLM", _LLAMA, rope_scaling=_LLAMA3_ROPE),
    "llama-tied": _config("LlamaForCausalLM", _LLAMA, tie_word_embeddings=True),
    "llama-biases": _config("LlamaForCausalLM", _LLAMA, attention_bias=True, mlp_bias=True),
    "qwen2": _config("Qwen2ForCausalLM", _LLAMA),
    "qwen3": _config("Qwen3ForCausalLM", _LLAMA),
    "qwen3-biases": _config("Qwen3ForCausalLM", _LLAMA, attention_bias=True),
    "gpt2": _config("GPT2LMHeadModel", _GPT2),
    "gpt2-untied": _config("GPT2LMHeadModel", _GPT2, tie_word_embeddings=False, activation_function="relu"),
}
