"""What a terminal would obey is escaped; what a script needs to be read is left."""

from __future__ import annotations

import pytest

from knee.lab.visible import visible


@pytest.mark.parametrize("text", ["👩\u200d👩\u200d👧", "می\u200cخواهم", "Größe 日本語 العربية", " a\u00a0b "])
def test_what_scripts_and_emoji_need_passes(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize(
    "char",
    list(
        "\x00\n\t\x1b\x7f\x9b\u061c\u200b\u200e\u200f\u202a\u202e\u2028\u2029\u2060\u2066\u2069\ufeff\ud800\U000e0041"
    ),
)
def test_what_moves_hides_or_turns_text_is_escaped(char: str) -> None:
    shown = visible(f"a{char}b")
    assert shown.isascii()
    assert shown.isprintable()
    assert "\\" in shown
