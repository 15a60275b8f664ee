"""A tokenizer rebuilt from the `tokenizer.*` metadata of a GGUF file.

GGUF names a pre-tokenizer; what the name means is written in the original model's `tokenizer.json`. Unknown names are
refused: with another split a model still talks, only worse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from knee.errors import ModelLoadError
from knee.weights import tokenizer as knee_tokenizer

_PREFIX = "tokenizer.ggml."
# Token types of GGUF.
_CONTROL, _USER_DEFINED = 3, 4

_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2_WORDS = _LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")


def tokenizer_from_metadata(metadata: Mapping[str, Any], eos_token_ids: frozenset[int]) -> knee_tokenizer.Tokenizer:
    """Rebuild a tokenizer. `ModelLoadError` if the metadata are damaged or of a kind that is not supported."""
    kind = str(metadata.get(f"{_PREFIX}model"))[:60]
    if kind not in _BUILDERS:
        raise ModelLoadError(f"tokenizer {kind!r} is not supported; supported: {', '.join(_BUILDERS)}")
    tokens = _texts(metadata, "tokens")
    with knee_tokenizer.damage_refused("the tokenizer in the GGUF file is damaged"):
        backend = _BUILDERS[kind](metadata, tokens)
        _add_special_tokens(backend, metadata, tokens)
    template = metadata.get("tokenizer.chat_template")
    return knee_tokenizer.Tokenizer(
        backend=backend,
        eos_token_ids=eos_token_ids,
        prefix=_around(metadata, tokens, "bos", default=kind == "llama" or _pre(metadata) == "llama-bpe"),
        suffix=_around(metadata, tokens, "eos", default=False),
        chat_template=template if isinstance(template, str) else None,
        special_tokens=_special_tokens(metadata, tokens),
    )


def _byte_level(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """Byte-level BPE (GPT-2)."""
    pre = _pre(metadata)
    if pre is None:
        raise ModelLoadError(
            f"the GGUF file does not name its pre-tokenizer ({_PREFIX}pre is missing), and a guess could be wrong: "
            f"convert the model anew; supported: {', '.join(_PRE_TOKENIZERS)}"
        )
    if pre not in _PRE_TOKENIZERS:
        raise ModelLoadError(f"pre-tokenizer {pre[:60]!r} is not supported; supported: {', '.join(_PRE_TOKENIZERS)}")
    vocabulary = _vocabulary(tokens)
    merges = [_pair(merge, vocabulary) for merge in _texts(metadata, "merges")]
    # Llama 3 takes a word that is a token as it is, without asking the merges.
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=pre == "llama-bpe"))
    if pre == "qwen2":
        backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(metadata: Mapping[str, Any], tokens: list[str]) -> Tokenizer:
    """SentencePiece BPE (Llama 2): merges follow from the scores, unknown characters fall back to bytes."""
    unknown = _token_id(metadata, tokens, "unknown")
    merges = _merges_by_score(tokens, _numbers(metadata, "scores", len(tokens)))
    model = models.BPE(
        _vocabulary(tokens),
        merges,
        unk_token=tokens[unknown or 0],
        fuse_unk=True,
        byte_fallback=True,
    )
    backend = Tokenizer(model)
    prefix_space = bool(metadata.get(f"{_PREFIX}add_space_prefix", True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
        replacement="▁", prepend_scheme="first" if prefix_space else "never", split=False
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if prefix_space else parts)
    return backend


_BUILDERS: dict[str, Callable[[Mapping[str, Any], list[str]], Tokenizer]] = {
    "gpt2": _byte_level,
    "llama": _sentencepiece,
}


def _gpt2_words() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _words(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _single_digits() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2_words()])


_PRE_TOKENIZERS: dict[str, Callable[[], pre_tokenizers.PreTokenizer]] = {
    "smollm": _single_digits,
    "gpt-2": _gpt2_words,
    "default": _gpt2_words,
    "llama-bpe": lambda: _words(_LLAMA3_WORDS),
    "qwen2": lambda: _words(_QWEN2_WORDS),
}


def _pre(metadata: Mapping[str, Any]) -> str | None:
    found = metadata.get(f"{_PREFIX}pre")
    return None if found is None else str(found)


def _merges_by_score(tokens: list[str], scores: np.ndarray[Any, Any]) -> list[tuple[str, str]]:
    """Every way to join two tokens to a third; SentencePiece joins what has the highest score first."""
    ids = {token: index for index, token in enumerate(tokens)}
    ranked = []
    for token, score in zip(tokens, scores.tolist(), strict=True):
        pairs = [(token[:cut], token[cut:]) for cut in range(1, len(token))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        ranked += [(-score, ids[left], ids[right], left, right) for left, right in known]
    return [(left, right) for *_, left, right in sorted(ranked)]


def _pair(merge: str, vocabulary: Mapping[str, int]) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if left not in vocabulary or right not in vocabulary or left + right not in vocabulary:
        raise ModelLoadError(f"the tokenizer in the GGUF file is damaged: merge {merge[:60]!r} is not of its tokens")
    return left, right


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise ModelLoadError("the tokenizer in the GGUF file is damaged: a token comes twice")
    return vocabulary


def _add_special_tokens(backend: Tokenizer, metadata: Mapping[str, Any], tokens: list[str]) -> None:
    """Control tokens are hidden from the text that is shown; user-defined ones are whole words of it."""
    if f"{_PREFIX}token_type" not in metadata:
        return
    types = _numbers(metadata, "token_type", len(tokens))
    control, defined = np.flatnonzero(types == _CONTROL), np.flatnonzero(types == _USER_DEFINED)
    backend.add_special_tokens([AddedToken(tokens[i], normalized=False, special=True) for i in control])
    backend.add_tokens([AddedToken(tokens[i], normalized=False, special=False) for i in defined])


def _around(metadata: Mapping[str, Any], tokens: list[str], which: str, default: bool) -> tuple[int, ...]:
    """The token that begins or ends every text, if the file wants one and has one."""
    token_id = _token_id(metadata, tokens, which)
    wanted = metadata.get(f"{_PREFIX}add_{which}_token", default)
    return (token_id,) if wanted is True and token_id is not None else ()


def _token_id(metadata: Mapping[str, Any], tokens: list[str], which: str) -> int | None:
    found = metadata.get(f"{_PREFIX}{which}_token_id")
    if found is None or (type(found) is int and 0 <= found < len(tokens)):
        return found
    raise ModelLoadError(f"{_PREFIX}{which}_token_id is {str(found)[:60]}, none of the {len(tokens)} tokens")


def _special_tokens(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    """The names by which chat templates call special tokens."""
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"{_PREFIX}{key}_token_id") for name, key in names.items()}
    return {name: tokens[i] for name, i in ids.items() if type(i) is int and 0 <= i < len(tokens)}


def _texts(metadata: Mapping[str, Any], key: str) -> list[str]:
    found = metadata.get(_PREFIX + key)
    if not isinstance(found, list) or not found:
        raise ModelLoadError(
            f"the tokenizer in the GGUF file is damaged: {_PREFIX}{key} is missing or no list of texts"
        )
    return found


def _numbers(metadata: Mapping[str, Any], key: str, length: int) -> np.ndarray[Any, Any]:
    found = metadata.get(_PREFIX + key)
    if not isinstance(found, np.ndarray) or len(found) != length:
        raise ModelLoadError(f"the tokenizer in the GGUF file is damaged: {_PREFIX}{key} must be {length} numbers")
    return found
