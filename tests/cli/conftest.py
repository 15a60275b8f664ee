"""A model folder small enough that whole commands run in a blink: one layer, a vocabulary of bytes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from tests.weights.files import write_folder

HIDDEN, INTERMEDIATE, HEADS, HEAD_DIM = 24, 40, 3, 8
SPECIAL = ("<|end|>", "<|user|>", "<|assistant|>")
VOCABULARY = 256 + len(SPECIAL)
CHAT_TEMPLATE = "{% for m in messages %}<|user|>{{ m.role }}: {{ m.content }}{% endfor %}<|assistant|>"


def tiny_config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "eos_token_id": 256,
    }


def tiny_tensors() -> dict[str, np.ndarray]:
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, HIDDEN),
        layer + "input_layernorm.weight": (HIDDEN,),
        layer + "self_attn.q_proj.weight": (HEADS * HEAD_DIM, HIDDEN),
        layer + "self_attn.k_proj.weight": (HEAD_DIM, HIDDEN),
        layer + "self_attn.v_proj.weight": (HEAD_DIM, HIDDEN),
        layer + "self_attn.o_proj.weight": (HIDDEN, HEADS * HEAD_DIM),
        layer + "post_attention_layernorm.weight": (HIDDEN,),
        layer + "mlp.gate_proj.weight": (INTERMEDIATE, HIDDEN),
        layer + "mlp.up_proj.weight": (INTERMEDIATE, HIDDEN),
        layer + "mlp.down_proj.weight": (HIDDEN, INTERMEDIATE),
        "model.norm.weight": (HIDDEN,),
        "lm_head.weight": (VOCABULARY, HIDDEN),
    }
    rng = np.random.default_rng(3)
    return {
        name: np.ones(shape, np.float32) if len(shape) == 1 else rng.standard_normal(shape, np.float32)
        for name, shape in shapes.items()
    }


def write_tokenizer(folder: Path) -> None:
    """Bytes are tokens 0 to 255; text is what they spell, which may be no text at all."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({char: number for number, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with its tokenizer."""
    folder = write_folder(tmp_path_factory.mktemp("models") / "tiny", tiny_tensors(), tiny_config())
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def mute_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model without a tokenizer."""
    return write_folder(tmp_path_factory.mktemp("models") / "mute", tiny_tensors(), tiny_config())
