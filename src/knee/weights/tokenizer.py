"""Text to token ids and back. The work is done by the `tokenizers` package; knows no requests and no models.

A tokenizer comes from a folder's `tokenizer.json`, or is rebuilt from a GGUF file's metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from knee.errors import ModelLoadError, UserError
from knee.weights.checkpoint import Checkpoint

if TYPE_CHECKING:
    import tokenizers

MAX_TOKENIZER_BYTES = 64 << 20
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


@dataclass(frozen=True)
class Tokenizer:
    """A model's tokenizer. `prefix` and `suffix` are token ids put around every text (BOS, EOS)."""

    backend: tokenizers.Tokenizer
    eos_token_ids: frozenset[int]
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    chat_template: str | None = None
    special_tokens: Mapping[str, str] = field(default_factory=dict)  # what templates call bos_token, …

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included. A model may have more logits (padding)."""
        return self.backend.get_vocab_size(with_added_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        """Whether `apply_chat_template` works."""
        return self.chat_template is not None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text. `add_special_tokens=False` after a chat template, which writes BOS itself."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the text is no valid Unicode: half a surrogate pair at character {error.start}") from None
        ids = self.backend.encode(text, add_special_tokens=add_special_tokens).ids
        return [*self.prefix, *ids, *self.suffix] if add_special_tokens else ids

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Text of token ids. Bytes that are no UTF-8 become U+FFFD."""
        return self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token adds to a text, perhaps part of a character. Empty for a special or unused id."""
        return b"" if token_id in self._special else self._spelled(token_id)

    def token_text(self, token_id: int) -> str:
        """One token for people: what a terminal would obey or not show is escaped (`\\n`, `\\u202e`, `\\xe2`)."""
        text = self._spelled(token_id).decode("utf-8", "backslashreplace")
        return "".join(char if char.isprintable() else _escape(char) for char in text) or f"<{token_id}>"

    def apply_chat_template(self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation. Messages have `role` and `content`. Raises `UserError`."""
        from knee.weights.chat import render

        if self.chat_template is None:
            raise UserError("the model has no chat template: give a plain prompt")
        context = {"messages": list(messages), "add_generation_prompt": add_generation_prompt, **self.special_tokens}
        return render(self.chat_template, context)

    def _spelled(self, token_id: int) -> bytes:
        """The bytes of a token's own spelling, a special one's included. Empty for an unused id."""
        token = self.backend.id_to_token(token_id)
        if token is None:
            return b""
        return token.encode() if token_id in self._added else self._to_bytes(token)

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self.backend.get_added_tokens_decoder())

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(id for id, token in self.backend.get_added_tokens_decoder().items() if token.special)

    def _to_bytes(self, token: str) -> bytes:
        if self._spelling == "byte level":
            alphabet = _byte_alphabet()
            known = all(char in alphabet for char in token)
            return bytes(alphabet[char] for char in token) if known else token.encode()
        if self._spelling == "byte fallback" and len(token) == 6 and token.startswith("<0x"):
            return bytes.fromhex(token[3:5])
        return token.replace("▁", " ").encode()

    @cached_property
    def _spelling(self) -> Literal["byte level", "byte fallback"]:
        """How the vocabulary spells bytes, which only the decoder knows."""
        decoder = self.backend.decoder
        state = b"" if decoder is None else decoder.__getstate__()
        return "byte level" if b'"ByteLevel"' in state else "byte fallback"


def load_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of an open model; None where its folder has no `tokenizer.json`.

    Raises `ModelLoadError` where it is damaged or of a kind that is not supported.
    """
    tokenizer = _find_tokenizer(checkpoint)
    if tokenizer is not None:
        tokenizer.token_bytes(0)  # makes its tables here, and not while the first token is timed
    return tokenizer


def _find_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    if checkpoint.gguf_tokenizer is not None:
        from knee.weights.gguf_tokenizer import tokenizer_from_metadata

        return tokenizer_from_metadata(checkpoint.gguf_tokenizer, checkpoint.eos_token_ids)
    if checkpoint.folder is None or not (checkpoint.folder / "tokenizer.json").is_file():
        return None
    return _from_folder(checkpoint.folder, checkpoint.eos_token_ids)


@contextmanager
def damage_refused(what: str) -> Iterator[None]:
    """Turn what the `tokenizers` package raises into `ModelLoadError`: bare exceptions, and panics of its Rust code,
    which are no `Exception` and have no public name."""
    try:
        yield
    except (ModelLoadError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise ModelLoadError(f"{what} ({str(error)[:200]})") from error


def _from_folder(folder: Path, eos_token_ids: frozenset[int]) -> Tokenizer:
    from knee.weights.folder import read_json_object

    file = folder / "tokenizer_config.json"
    settings = read_json_object(file) if file.is_file() else {}
    tokens = {name: _token_content(settings.get(name)) for name in _SPECIAL_TOKENS}
    return Tokenizer(
        backend=_read_backend(folder / "tokenizer.json"),
        eos_token_ids=eos_token_ids,
        chat_template=_chat_template(folder, settings),
        special_tokens={name: token for name, token in tokens.items() if token is not None},
    )


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    import tokenizers

    if path.stat().st_size > MAX_TOKENIZER_BYTES:
        raise ModelLoadError(f"{path}: larger than {MAX_TOKENIZER_BYTES >> 20} MiB; this cannot be right")
    with damage_refused(f"{path}: no tokenizer that can be read"):
        backend = tokenizers.Tokenizer.from_file(str(path))
    backend.no_truncation()  # nothing is cut in silence
    backend.no_padding()
    return backend


def _token_content(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, Mapping) else token
    return content if isinstance(content, str) else None


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """`chat_template.jinja` wins, as in transformers; a list of named templates holds one called "default"."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8", "replace")
    found = settings.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, Mapping)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


@cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes as printable characters (Radford et al. 2019)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
