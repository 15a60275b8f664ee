"""The experiment log: all runs of a folder in one Markdown file, newest first, each by the log's template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from knee.lab.markdown import escaped, to_markdown
from knee.lab.messages import Lang, text
from knee.lab.runs import RunEntry


def to_log(entries: Sequence[RunEntry], lang: Lang = "en") -> str:
    """One section a run, in the order given; runs that cannot be read stand at the end, with the reason."""
    return "\n".join(_lines(entries, lang))


def _lines(entries: Sequence[RunEntry], lang: Lang) -> Iterator[str]:
    readable = [entry for entry in entries if entry.record is not None]
    yield f"# {text(lang, 'report.log.title')}"
    yield ""
    if not entries:
        yield text(lang, "report.log.empty")
        yield ""
    for entry in readable:
        yield _section(entry, lang)
    problems = [entry for entry in entries if entry.record is None]
    if problems:
        yield f"## {text(lang, 'report.log.unreadable')}"
        yield ""
        for entry in problems:
            yield f"- {escaped(entry.path.name)}: {escaped(entry.problem or '')}"
        yield ""


def _section(entry: RunEntry, lang: Lang) -> str:
    assert entry.record is not None
    lines = to_markdown(entry.record, lang).rstrip("\n").split("\n")
    # A heading is ours: in words from outside "#" is escaped.
    lines = [f"#{line}" if line.startswith("#") else line for line in lines]
    folder = f"- **{text(lang, 'report.log.folder')}**: {escaped(entry.path.name)}"
    return "\n".join([lines[0], "", folder, *lines[2:], ""])
