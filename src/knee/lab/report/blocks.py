"""What a page is made of. Words in here come from anywhere: the template escapes every one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup

from knee.lab.report.figures.canvas import Key, Picture


@dataclass(frozen=True, slots=True)
class Badge:
    """A verdict: a sign and a word, in a colour that says the same. `tone` is good, bad, open or plain."""

    tone: str
    words: str
    kind: ClassVar[str] = "badge"


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of words or badges. The first `texts` columns are words, the others numbers."""

    header: Sequence[str]
    rows: Sequence[Sequence[str | Badge]]
    texts: int = 1
    title: str = ""
    note: str = ""
    kind: ClassVar[str] = "table"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with their values, side by side."""

    pairs: Sequence[tuple[str, str]]
    title: str = ""
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True, slots=True)
class Sentences:
    """A list of sentences. `verbatim`: they are nobody's prose, and nothing in them is a command."""

    lines: Sequence[str]
    title: str = ""
    verbatim: bool = False
    kind: ClassVar[str] = "sentences"


@dataclass(frozen=True, slots=True)
class Paste:
    """Something to copy, line by line as it is; `name` says where it is for."""

    name: str
    lines: Sequence[str]
    kind: ClassVar[str] = "paste"


@dataclass(frozen=True, slots=True)
class Panels:
    """Small figures side by side with one legend and one caption."""

    pictures: Sequence[Picture]
    keys: Sequence[Key] = ()
    caption: str = ""
    kind: ClassVar[str] = "panels"


@dataclass(frozen=True, slots=True)
class Folded:
    """Blocks that are there for who asks. `printed`: on paper they are unfolded."""

    title: str
    blocks: Sequence[Block]
    printed: bool = False
    kind: ClassVar[str] = "folded"


@dataclass(frozen=True, slots=True)
class ClaimView:
    """A claim with what became of it; `figures` are anchors of pictures, with their names."""

    statement: str
    verdict: Badge
    sentence: str
    effect: str
    picture: Markup | None = None
    figures: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Claims:
    """All claims that were tested."""

    claims: Sequence[ClaimView]
    note: str = ""
    kind: ClassVar[str] = "claims"


@dataclass(frozen=True, slots=True)
class Card:
    """An answer: what to run for this use, how sure that is, and what it gives and costs."""

    title: str
    verdict: Badge
    choice: str
    setting: str
    facts: Facts
    sentence: str
    limits: Facts | None = None
    effects: Table | None = None
    commands: Sequence[Paste] = ()
    commands_title: str = ""
    kind: ClassVar[str] = "card"


@dataclass(frozen=True, slots=True)
class Cards:
    """The answers."""

    cards: Sequence[Card]
    kind: ClassVar[str] = "cards"


@dataclass(frozen=True, slots=True)
class Alarm:
    """Why nothing on the page is to be believed."""

    title: str
    words: str
    kind: ClassVar[str] = "alarm"


@dataclass(frozen=True, slots=True)
class Caution:
    """A warning with its advice, and what it is about."""

    code: str
    message: str
    advice: str
    about: str


@dataclass(frozen=True, slots=True)
class Cautions:
    """All warnings."""

    cautions: Sequence[Caution]
    kind: ClassVar[str] = "cautions"


Block = Table | Facts | Sentences | Paste | Panels | Folded | Claims | Cards | Alarm | Cautions | Picture


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with its heading and anchor."""

    name: str
    title: str
    blocks: Sequence[Block] = field(default=())
