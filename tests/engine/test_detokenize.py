"""Laws of streamed text: it is the whole text, character by whole character, up to the first stop string."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from knee.engine.detokenize import Detokenizer, Spelling

LAW = settings(deadline=None, max_examples=150)
# Few characters of every length in UTF-8, so that stop strings are found and are cut by tokens.
TEXT = st.text(alphabet="ab \né汉🙂", max_size=30)
STOPS = st.lists(st.text(alphabet="ab é汉🙂", min_size=1, max_size=4), max_size=3).map(tuple)


class Tokens:
    """A tokenizer whose token i is the i-th piece."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]


@st.composite
def pieces_of(draw: st.DrawFn, data: bytes) -> list[bytes]:
    """Any way to cut bytes into tokens, empty (special) tokens included."""
    cuts = draw(st.lists(st.integers(0, len(data)), max_size=len(data) + 3).map(sorted))
    return [data[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def stream(pieces: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    detokenizer = Detokenizer(Spelling(Tokens(pieces)), stop)
    deltas = [detokenizer.push(token_id) for token_id in range(len(pieces))]
    return [*deltas, detokenizer.flush()], detokenizer.finished


def up_to_first_stop(text: str, stop: tuple[str, ...]) -> tuple[str, bool]:
    for end in range(len(text) + 1):
        complete = [len(one) for one in stop if text[:end].endswith(one)]
        if complete:
            return text[: end - max(complete)], True
    return text, False


@LAW
@given(st.data(), TEXT, STOPS)
def test_the_stream_is_the_text_up_to_the_first_stop_string(
    data: st.DataObject, text: str, stop: tuple[str, ...]
) -> None:
    deltas, finished = stream(data.draw(pieces_of(text.encode())), stop)
    assert ("".join(deltas), finished) == up_to_first_stop(text, stop)


@LAW
@given(st.data(), TEXT, STOPS)
def test_no_delta_shows_half_a_character(data: st.DataObject, text: str, stop: tuple[str, ...]) -> None:
    deltas, _ = stream(data.draw(pieces_of(text.encode())), stop)
    assert not any("\N{REPLACEMENT CHARACTER}" in delta for delta in deltas)


@LAW
@given(st.data(), st.binary(max_size=30))
def test_invalid_bytes_read_as_they_would_in_one_piece(data: st.DataObject, raw: bytes) -> None:
    deltas, _ = stream(data.draw(pieces_of(raw)))
    assert "".join(deltas) == raw.decode(errors="replace")


@LAW
@given(st.data(), TEXT)
def test_without_stop_strings_a_character_comes_out_as_soon_as_it_is_whole(data: st.DataObject, text: str) -> None:
    pieces = data.draw(pieces_of(text.encode()))
    deltas, _ = stream(pieces)
    for n in range(len(pieces) + 1):
        whole = b"".join(pieces[:n]).decode(errors="ignore")  # what ends in half a character is no error yet
        assert "".join(deltas[:n]) == whole


@LAW
@given(TEXT, STOPS)
def test_only_what_may_begin_a_stop_string_is_held_back(text: str, stop: tuple[str, ...]) -> None:
    detokenizer, shown = Detokenizer(Spelling(Tokens([char.encode() for char in text])), stop), ""
    for token_id in range(len(text)):
        shown += detokenizer.push(token_id)
        if detokenizer.finished:
            break
        held = text[len(shown) : token_id + 1]
        assert not held or any(one.startswith(held) for one in stop)


def test_a_stop_string_is_found_across_tokens_and_inside_one() -> None:
    assert stream([b"one <", b"/s", b">two"], ("</s>",)) == (["one ", "", "", ""], True)
    assert stream([b"one", b" and</s>two"], ("</s>",)) == (["one", " and", ""], True)


def test_what_only_looked_like_a_stop_string_is_given_back() -> None:
    assert stream([b"a<", b"/b"], ("</s>",)) == (["a", "</b", ""], False)
    assert stream([b"a<", b"/"], ("</s>",)) == (["a", "", "</"], False)


def test_the_stop_string_that_is_complete_first_ends_the_text() -> None:
    assert stream([b"abcde"], ("abcd", "bc")) == (["a", ""], True)
    assert stream([b"xabc"], ("bc", "abc")) == (["x", ""], True)


def test_nothing_comes_after_the_stop_string() -> None:
    detokenizer = Detokenizer(Spelling(Tokens(["stop汉".encode()[:-1], b"more"])), ("stop",))
    assert detokenizer.push(0) == ""
    assert detokenizer.finished
    assert detokenizer.push(1) + detokenizer.flush() == ""


def test_half_a_character_at_the_end_is_shown_as_broken() -> None:
    assert stream(["汉".encode()[:2]]) == (["", "\N{REPLACEMENT CHARACTER}"], False)
