"""The default model's real file: its tensors and tokens are those that transformers reads from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from knee.program import Program, WeightSpec
from knee.weights.load import find_weights, open_checkpoint
from knee.weights.tokenizer import Tokenizer, load_tokenizer

pytestmark = pytest.mark.model

TEXTS = [
    "The capital of France is",
    "def f(x):\n    return x ** 2  # squared\n\n\treturn",
    "In 2024, 1234567 people; 3.14159 of it.",
    "Größe, naïve café, 日本語のテキスト, 한국어, العربية, 🙂👩‍👩‍👧",
    "it's we'll I'd you've DON'T",
    "   leading and trailing   ",
    "<|im_start|>user\nHi<|im_end|>\n",
    "",
    "\x00\x1b[31m\u202e\ufeff",
]


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path) -> Tokenizer:
    found = load_tokenizer(open_checkpoint(str(smollm2_path)))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def oracle_tokenizer(smollm2_path: Path) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)


def test_the_file_is_known_by_its_hash(smollm2_path: Path) -> None:
    from knee.weights.catalog import CATALOG

    assert open_checkpoint(str(smollm2_path)).sha256() == CATALOG["smollm2-135m"].sha256  # type: ignore[union-attr]


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("text", TEXTS)
def test_tokens_are_those_of_transformers(tokenizer: Tokenizer, oracle_tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids == oracle_tokenizer.encode(text)
    assert tokenizer.decode(ids) == oracle_tokenizer.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert b"".join(tokenizer.token_bytes(token) for token in ids) == tokenizer.decode(ids).encode()


@pytest.mark.parametrize(("text", "tokens"), [("a  1", ["a", "  ", "1"]), (" ½", [" ", "½"])])
def test_digits_are_cut_off_first_as_in_the_original(tokenizer: Tokenizer, text: str, tokens: list[str]) -> None:
    """SmolLM2's own tokenizer.json does; transformers' GGUF reader does not know the pre-tokenizer "smollm"."""
    assert [tokenizer.token_text(token) for token in tokenizer.encode(text)] == tokens


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_the_chat_template_writes_what_transformers_writes(tokenizer: Tokenizer, oracle_tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hé"}]
    for add in (True, False):
        expected = oracle_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add)
        assert tokenizer.apply_chat_template(messages, add_generation_prompt=add) == expected


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_every_tensor_is_bit_for_bit_that_of_transformers(smollm2_path: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    oracle = transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    )
    checkpoint = open_checkpoint(str(smollm2_path))
    specs = {name: WeightSpec(tensor.shape, name) for name, tensor in checkpoint.tensors.items()}
    program = Program(
        "llama", (), {}, specs, layers=30, heads=9, kv_heads=3, head_dim=64, vocab_size=49152, positions=8192
    )
    weights = find_weights(program, checkpoint)
    expected = oracle.state_dict()
    assert expected.keys() - weights.keys() <= {"lm_head.weight"}
    for name, weight in weights.items():
        assert np.array_equal(weight.read(), expected[name].numpy()), name
    config = oracle.config
    for key in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "vocab_size"):
        assert checkpoint.config[key] == getattr(config, key)
