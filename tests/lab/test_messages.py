"""Every sentence is there in both languages, and a stored English one is found again in Chinese."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from string import Formatter

import pytest

from knee.lab import messages
from knee.lab.messages import LANGUAGES, MESSAGES, dtype_notes, text, translated

SOURCE = Path(messages.__file__).parents[1]


def fields(template: str) -> set[str]:
    return {name for _, name, _, _ in Formatter().parse(template) if name}


@pytest.mark.parametrize("key", MESSAGES)
def test_both_languages_have_the_same_places_for_values(key: str) -> None:
    english, chinese = MESSAGES[key]
    assert english.strip()
    assert chinese.strip()
    assert fields(english) == fields(chinese)


# Who asks for words: which argument is the key, and what stands before it.
PLACES = {"text": [(1, "")], "say": [(0, "")], "warning": [(0, "warning.")], "_doubt": [(1, "advice.")]}


def asked_keys() -> Iterator[tuple[str, bool]]:
    """Keys in `text(lang, "key")`, `say("key")` and `warning("code")`; of an f-string its constant beginning."""
    for file in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            for place, topic in PLACES.get(node.func.id, ()):
                key = node.args[place] if len(node.args) > place else None
                if isinstance(key, ast.Constant) and isinstance(key.value, str):
                    yield topic + key.value, True
                if isinstance(key, ast.JoinedStr) and isinstance(key.values[0], ast.Constant):
                    yield topic + str(key.values[0].value), False


def test_every_key_that_the_source_asks_for_exists() -> None:
    asked = set(asked_keys())
    assert len(asked) > 50  # the search finds something
    missing = [
        key for key, whole in asked if not (key in MESSAGES if whole else any(one.startswith(key) for one in MESSAGES))
    ]
    assert missing == []


def test_a_stored_sentence_is_given_in_chinese_with_its_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ("Batch {size} is {change:+.0%} {{faster}} (a.b)", "批大小 {size} 快 {change:+.0%}")
    monkeypatch.setattr(messages, "MESSAGES", {**MESSAGES, "finding.faster": entry})
    messages._stored.cache_clear()
    stored = text("en", "finding.faster", size=8, change=3.2)
    assert stored == "Batch 8 is +320% {faster} (a.b)"
    assert translated("en", stored) == stored
    assert translated("zh", stored) == "批大小 8 快 +320%"
    messages._stored.cache_clear()


STORED = [key for key in MESSAGES if key.startswith(messages._STORED)]


@pytest.mark.parametrize("key", STORED)
def test_a_stored_sentence_is_found_again_and_not_taken_for_another(key: str) -> None:
    places = {name: spec for _, name, spec, _ in Formatter().parse(MESSAGES[key][0]) if name}
    values = {name: 7.25 if spec else f"<{name}>" for name, spec in places.items()}
    chinese = text("zh", key, **values)
    # Numbers come as they were formatted in English.
    found = translated("zh", text("en", key, **values))
    assert found == (chinese if not any(places.values()) else found)
    assert found != text("en", key, **values) or text("en", key, **values) == chinese


@pytest.mark.parametrize(
    "reason", ["the narrowest type that holds the file's Q4_1, Q8_0 without loss", "rounded from the file's BF16"]
)
def test_reasons_for_a_weight_type_are_given_in_chinese(reason: str) -> None:
    [english], [chinese] = (dtype_notes("int4", reason, lang) for lang in ("en", "zh"))
    assert english == f"Weights in int4: {reason}."
    assert "int4" in chinese
    assert not re.search(r"\b(narrowest|rounded|file)\b", chinese)
    assert dtype_notes("int4", "", "en") == []


def test_a_sentence_of_nobody_stays_as_it_is() -> None:
    for lang in LANGUAGES:
        assert translated(lang, "Written by hand {}.") == "Written by hand {}."
