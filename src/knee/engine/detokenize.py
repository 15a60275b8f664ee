"""Streaming text: from tokens to whole characters, up to the first stop string.

A byte-level token may be half a UTF-8 character, and a stop string may begin in one token and end in another. So
text comes out as soon as it is certain and no sooner. Knows bytes and strings, not how a tokenizer makes them.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from functools import cache
from typing import Protocol


class TokenBytes(Protocol):
    """The part of a tokenizer that a stream of text needs."""

    def token_bytes(self, token_id: int) -> bytes:
        """The raw bytes of a token, perhaps half a character; b"" for a special token."""


class Spelling:
    """What each token spells, for all requests of an engine: the tokenizer is asked once for each token.

    `bytes_of` gives a token's bytes; `text_of` its text, or None where it ends in half a character. Both keep what
    they were asked for, which is never more than the vocabulary.
    """

    def __init__(self, tokenizer: TokenBytes) -> None:
        self.bytes_of: Callable[[int], bytes] = cache(tokenizer.token_bytes)
        self.text_of: Callable[[int], str | None] = cache(self._text_of)

    def _text_of(self, token_id: int) -> str | None:
        text, rest = _decode(self.bytes_of(token_id))
        return None if rest else text


def _decode(data: bytes) -> tuple[str, bytes]:
    """The whole characters, and the beginning of another one."""
    text, used = codecs.utf_8_decode(data, "replace")
    return text, data[used:]


class Detokenizer:
    """The text of one request as it grows.

    The first stop string to be complete ends the text: it is dropped with all that follows, and `finished` is True
    from then on. (Of several that end with the same character, the longest.) So the text is the same however its
    bytes are spread over tokens.
    """

    __slots__ = ("_held", "_partial", "_spelling", "_stop", "finished")

    def __init__(self, spelling: Spelling, stop: tuple[str, ...] = ()) -> None:
        self.finished = False
        self._spelling = spelling
        self._stop = stop
        self._partial = b""  # the beginning of a character
        self._held = ""  # whole characters that may yet turn out to begin a stop string

    def push(self, token_id: int) -> str:
        """Take one token; returns the text that it makes certain, often "".

        Bytes that are no UTF-8 become U+FFFD; bytes that may still become a character wait.
        """
        text = self._spelling.text_of(token_id)
        if text is None or self._partial:
            text, self._partial = _decode(self._partial + self._spelling.bytes_of(token_id))
        return self._settle(text) if self._stop else text

    def flush(self) -> str:
        """The request has ended: what was held back is text after all, and half a character becomes U+FFFD."""
        text = self._settle(self._partial.decode(errors="replace")) + self._held
        self._partial, self._held = b"", ""
        return text

    def _settle(self, new: str) -> str:
        """Add `new` to what is held; returns what is certain now and holds the rest."""
        if self.finished:
            return ""
        text = self._held + new
        stop_at = self._stop_at(text)
        if stop_at is not None:
            self.finished, self._held = True, ""
            return text[:stop_at]
        certain = self._certain(text)
        self._held = text[certain:]
        return text[:certain]

    def _stop_at(self, text: str) -> int | None:
        """Where the stop string begins that is complete first."""
        found = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _certain(self, text: str) -> int:
        """How much of `text` comes before its longest end that may begin a stop string."""
        longest = max(map(len, self._stop), default=1) - 1
        for start in range(max(0, len(text) - longest), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stop):
                return start
        return len(text)
