"""Tokenizers rebuilt from GGUF metadata, and those of folders, give the tokens of the originals."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from knee.errors import ModelLoadError, UserError
from knee.weights.folder import open_folder
from knee.weights.gguf_tokenizer import tokenizer_from_metadata
from knee.weights.tokenizer import Tokenizer, load_tokenizer
from tests.weights.files import write_folder

CONTROL, NORMAL, BYTE = 3, 1, 6
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level_metadata(pre: str | None = "smollm", **changes: Any) -> dict[str, Any]:
    tokens = ["<|end|>", "<|start|>", *BYTES, "ab", "Ġa", "ĠĠ", "12", "abc", "abcd"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": np.array([CONTROL, CONTROL] + [NORMAL] * (len(tokens) - 2), np.int32),
        "tokenizer.ggml.merges": ["a b", "Ġ a", "Ġ Ġ", "1 2", "ab c"],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 0,
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    pieces = ["▁", "h", "e", "l", "o", "he", "ll", "hell", "hello", "▁hello", "lo", "ello"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    types = [2, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces)
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(pieces))]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": np.array(scores, np.float32),
        "tokenizer.ggml.token_type": np.array(types, np.int32),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


def rebuilt(metadata: dict[str, Any]) -> Tokenizer:
    return tokenizer_from_metadata(metadata, frozenset({0}))


def texts(tokenizer: Tokenizer, text: str) -> list[str]:
    return [tokenizer.token_text(token) for token in tokenizer.encode(text)]


@pytest.mark.parametrize(
    ("pre", "words"),
    [
        ("smollm", ["  ", "1", "2", " a"]),  # every digit stands alone, and a space before it too
        ("gpt-2", [" ", " ", "12", " a"]),
        ("default", [" ", " ", "12", " a"]),
        ("llama-bpe", [" ", " ", "12", " a"]),
        ("qwen2", [" ", " ", "1", "2", " a"]),
    ],
)
def test_each_pre_tokenizer_cuts_words_its_own_way(pre: str, words: list[str]) -> None:
    tokenizer = rebuilt(byte_level_metadata(pre, add_bos_token=False))
    assert texts(tokenizer, "  12 a") == words


def test_llama3_takes_a_word_that_is_a_token_as_it_is() -> None:
    without_bos = {"add_bos_token": False}
    assert texts(rebuilt(byte_level_metadata("llama-bpe", **without_bos)), "abcd") == ["abcd"]
    assert texts(rebuilt(byte_level_metadata("smollm", **without_bos)), "abcd") == ["abc", "d"]


def test_sentencepiece_joins_by_score_and_falls_back_to_bytes() -> None:
    tokenizer = rebuilt(sentencepiece_metadata())
    assert texts(tokenizer, "hello") == ["<s>", " hello"]
    ids = tokenizer.encode("é hello")
    assert b"".join(tokenizer.token_bytes(token) for token in ids[1:]) == " é hello".encode()
    assert tokenizer.decode(ids) == "é hello"


def test_bos_comes_first_where_the_file_or_its_kind_says_so() -> None:
    assert rebuilt(byte_level_metadata()).encode("a") == [BYTES.index("a") + 2]
    assert rebuilt(byte_level_metadata(add_bos_token=True)).encode("a")[0] == 1
    assert rebuilt(byte_level_metadata("llama-bpe")).encode("a")[0] == 1
    assert rebuilt(sentencepiece_metadata()).encode("h")[0] == 1
    assert 1 not in rebuilt(sentencepiece_metadata()).encode("h", add_special_tokens=False)


def test_control_tokens_are_whole_and_hidden_unless_asked_for() -> None:
    tokenizer = rebuilt(byte_level_metadata())
    ids = tokenizer.encode("a<|end|>")
    assert ids[-1] == 0
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<|end|>"
    assert (tokenizer.token_bytes(0), tokenizer.token_text(0)) == (b"", "<|end|>")


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return rebuilt(byte_level_metadata())


@settings(deadline=None)
@given(text=st.text())
def test_the_bytes_of_the_tokens_are_the_text(byte_level: Tokenizer, text: str) -> None:
    ids = byte_level.encode(text)
    assert b"".join(byte_level.token_bytes(token) for token in ids) == text.encode()
    assert byte_level.decode(ids, skip_special_tokens=False) == text


@settings(deadline=None)
@given(text=st.text())
def test_a_shown_token_has_nothing_that_a_terminal_obeys(byte_level: Tokenizer, text: str) -> None:
    assert all(shown.isprintable() for shown in texts(byte_level, text))


def test_half_a_character_and_control_marks_are_shown_escaped() -> None:
    tokenizer = rebuilt(byte_level_metadata())
    assert texts(tokenizer, "\x1b\n") == ["\\x1b", "\\n"]
    assert texts(tokenizer, "é") == ["\\xc3", "\\xa9"]
    assert tokenizer.token_text(10**6) == "<1000000>"
    assert tokenizer.token_bytes(10**6) == b""


def test_half_a_surrogate_pair_is_a_message() -> None:
    with pytest.raises(UserError, match="half a surrogate pair at character 2"):
        rebuilt(byte_level_metadata()).encode("ab\ud800")


def test_a_megabyte_without_a_space_takes_seconds() -> None:
    started = time.perf_counter()
    assert len(rebuilt(byte_level_metadata()).encode("ab" * 500_000)) == 500_000
    assert len(rebuilt(sentencepiece_metadata()).encode("h" * 1_000_000)) > 999_999
    assert time.perf_counter() - started < 60


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "tokenizer 'None' is not supported; supported: gpt2, llama"),
        (byte_level_metadata(model="bert"), "'bert' is not supported; supported: gpt2, llama"),
        (byte_level_metadata("tekken"), "'tekken' is not supported; supported: smollm, gpt-2"),
        (byte_level_metadata(pre=None), r"tokenizer\.ggml\.pre is missing.*supported: smollm, gpt-2"),
        (byte_level_metadata(tokens=None), "tokens is missing"),
        (byte_level_metadata(tokens=np.arange(4)), "no list of texts"),
        (byte_level_metadata(tokens=["a", "a"]), "a token comes twice"),
        (byte_level_metadata(merges=["ab"]), "merge 'ab' is not of its tokens"),
        (byte_level_metadata(merges=["x nothing"]), "merge 'x nothing' is not of its tokens"),
        (byte_level_metadata(merges=["b a"]), "merge 'b a' is not of its tokens"),
        (byte_level_metadata(token_type=np.array([1])), "token_type must be"),
        (sentencepiece_metadata(scores=None), "scores must be"),
        (sentencepiece_metadata(unknown_token_id="x"), "unknown_token_id is x, none of the 271 tokens"),
        (byte_level_metadata(bos_token_id=10**6), "bos_token_id is 1000000"),
        (byte_level_metadata(model=["gpt2"]), "is not supported"),
    ],
)
def test_other_and_damaged_tokenizers_are_refused(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=message):
        rebuilt(metadata)


@pytest.mark.oracle
@pytest.mark.parametrize(
    "metadata",
    [sentencepiece_metadata(), *(byte_level_metadata(pre) for pre in ("gpt-2", "llama-bpe", "qwen2"))],
    ids=["llama", "gpt-2", "llama-bpe", "qwen2"],
)
def test_rebuilt_tokenizers_are_those_of_transformers(metadata: dict[str, Any]) -> None:
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    plain = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    described = plain | {"tokenizer_type": plain["model"], "pre_tokenizer_type": plain.get("pre")}
    oracle, _ = mapping.convert_gguf_tokenizer("llama", {key: _as_list(value) for key, value in described.items()})
    tokenizer, pieces = rebuilt(metadata), [*" 12\n\té日ablohe", "hello", "  ", "<s>", "<|end|>"]
    rng = random.Random(0)
    for _ in range(500):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == oracle.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(ids) == oracle.decode(ids), text


def _as_list(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else value


# --- folders --------------------------------------------------------------------------------------------------------


def folder_tokenizer(
    folder: Path, settings: dict[str, Any] | None = None, jinja: str | None = None
) -> Tokenizer | None:
    vocabulary = {char: index for index, char in enumerate(BYTES)} | {"ab": 256}
    backend = Backend(models.BPE(vocabulary, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.enable_truncation(4)
    write_folder(folder, {"w": np.ones(2, np.float32)}, {"eos_token_id": 3})
    backend.save(str(folder / "tokenizer.json"))
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    if jinja is not None:
        (folder / "chat_template.jinja").write_text(jinja)
    return load_tokenizer(open_folder(folder, "tiny", "tiny"))


def test_a_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    write_folder(tmp_path, {"w": np.ones(2, np.float32)}, {})
    assert load_tokenizer(open_folder(tmp_path, "tiny", "tiny")) is None


def test_a_folders_tokenizer_is_used_and_never_cuts(tmp_path: Path) -> None:
    tokenizer = folder_tokenizer(tmp_path)
    assert tokenizer is not None
    assert tokenizer.vocab_size == 257
    assert tokenizer.eos_token_ids == {3}
    assert tokenizer.encode("ab" * 9) == [256] * 9
    assert tokenizer.token_bytes(256) == b"ab"
    assert not tokenizer.has_chat_template
    with pytest.raises(UserError, match="no chat template"):
        tokenizer.apply_chat_template([])


@pytest.mark.parametrize(
    ("settings", "jinja", "expected"),
    [
        ({"chat_template": "{{ bos_token }}!", "bos_token": {"content": "<s>"}}, None, "<s>!"),
        ({"chat_template": [{"name": "default", "template": "d"}, {"name": "rag", "template": "r"}]}, None, "d"),
        ({"chat_template": "old"}, "new", "new"),
    ],
)
def test_chat_templates_are_found_where_transformers_finds_them(
    tmp_path: Path, settings: dict[str, Any], jinja: str | None, expected: str
) -> None:
    tokenizer = folder_tokenizer(tmp_path, settings, jinja)
    assert tokenizer is not None
    assert tokenizer.apply_chat_template([]) == expected


def test_a_broken_tokenizer_file_is_a_message(tmp_path: Path) -> None:
    folder_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(ModelLoadError, match="no tokenizer that can be read"):
        load_tokenizer(open_folder(tmp_path, "tiny", "tiny"))
