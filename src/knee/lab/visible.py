"""Text from anywhere, made harmless to a terminal and a page. Light to import: it runs between tokens."""

from __future__ import annotations

import unicodedata

_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # Persian and emoji are written with them


def visible(words: str) -> str:
    """Control, format and right-to-left characters as escapes that can be read; everything else as it is."""
    return "".join(_escape(char) if _is_hidden(char) else char for char in words)


def _is_hidden(char: str) -> bool:
    return unicodedata.category(char) in _HIDDEN and char not in _JOINERS


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()
