"""A run as one HTML page that needs nothing but a browser: no network, no script, light or dark, on paper too.

Pure: a record and its rows in, the same page out, byte for byte. What comes from outside (names, prompts, tokens) is
escaped by the template, and control characters are shown instead of sent. `page.html.j2` is the page's form and style.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from knee.lab.messages import Lang, text, translated
from knee.lab.records import Record, RequestRow, StepRow
from knee.lab.report import kinds, raw, sweep
from knee.lab.report.answer import answer, warnings
from knee.lab.report.blocks import Section, Sentences
from knee.lab.report.figures.canvas import drawing
from knee.lab.sweep_records import SweepMetrics
from knee.lab.visible import visible

_COMMAND = re.compile(r"`([^`]+)`")
_OPTION = re.compile(r"(?<![\w>-])--[a-z][a-z-]*")  # may not be broken after its hyphens


def to_html(record: Record, requests: Sequence[RequestRow], steps: Sequence[StepRow], lang: Lang = "en") -> str:
    """The whole page. `requests` and `steps` are the run's raw rows; empty where it has none."""
    say = partial(text, lang)
    whole = _whole_trials(record)
    with drawing():
        sections = _sections(record, [*filter(whole, requests)], [*filter(whole, steps)], lang)
    return _template().render(
        lang="zh-CN" if lang == "zh" else "en",
        say=say,
        record=record,
        date=record.created_at.replace("T", " ").replace("+00:00", " UTC"),
        kind=say(f"{record.kind}.title"),
        sections=[section for section in sections if section.blocks],
    )


def _whole_trials(record: Record) -> Callable[[RequestRow | StepRow], bool]:
    """Whether a row belongs to a trial that counts: not void, and not cut off by an interrupt."""
    trials = record.metrics.trials if isinstance(record.metrics, SweepMetrics) else []
    whole = {(trial.cell, trial.repeat) for trial in trials if not trial.void}
    return lambda row: not row.void and (not trials or (row.cell, row.repeat) in whole)


def _sections(record: Record, requests: Sequence[RequestRow], steps: Sequence[StepRow], lang: Lang) -> list[Section]:
    say = partial(text, lang)
    notes = [translated(lang, note) for note in record.notes]
    found = [answer(record, say, lang), warnings(record, say, lang)]
    if isinstance(record.metrics, SweepMetrics):
        found += sweep.sections(record, record.metrics, requests, steps, say, lang)
    else:
        found += kinds.sections(record, say, lang)
    found += [Section("notes", say("log.notes"), [Sentences(notes)] if notes else []), raw.environment(record, say)]
    if isinstance(record.metrics, SweepMetrics):
        found.append(raw.tables(record.metrics, say))
    return found


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["prose"] = _prose
    return environment.get_template("page.html.j2")


def _prose(sentence: str) -> Markup:
    """A sentence with its commands, which stand between backticks."""
    words = _COMMAND.sub(r"<code>\1</code>", str(escape(visible(sentence))))
    return Markup(_OPTION.sub(r'<span class="option">\g<0></span>', words))


def _harmless(value: object) -> object:
    """Every word that the template writes; pictures are ours."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
