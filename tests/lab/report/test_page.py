"""The report is one page that needs nothing else, says the same in both languages, and believes nobody's text."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest

from knee.lab.messages import LANGUAGES, Lang, text
from knee.lab.records import Record, RequestRow, StepRow, Warning_
from knee.lab.report import to_html
from knee.lab.report.page import to_html as page_of
from knee.lab.sweep_records import SweepMetrics
from tests.lab import samples as plain
from tests.lab.report import samples
from tests.lab.report.html import Page

KINDS = ("sweep", "kvcache", "baseline", "inspect")
NASTY = "a<script>alert(1)</script>\x1b[31m\u202e\"'& {{ 7*7 }} $x$ </style>`b`"


@pytest.fixture(scope="module", params=[(kind, lang) for kind in KINDS for lang in LANGUAGES], ids=str)
def made(request: pytest.FixtureRequest) -> tuple[Record, Lang, Page]:
    """The page of every kind in every language; the English sweep has 30 cells and 150 trials."""
    kind, lang = request.param
    large = lang == "en" or kind != "sweep"
    record, requests, steps = samples.run_of(kind) if large else samples.judged(sizes=(1, 4), requests=12)
    return record, lang, Page(to_html(record, requests, steps, lang))


def test_a_page_says_what_was_measured_on_what(made: tuple[Record, Lang, Page]) -> None:
    record, lang, page = made
    for words in (record.name, record.model.name, record.model.sha256, record.hardware.cpu, record.workload.arrival):
        assert words in page.words
    for key in ("report.section.answer", "report.section.environment", f"{record.kind}.title"):
        assert text(lang, key) in page.words
    assert page.count("svg") > 2


def test_a_page_needs_nothing_but_itself(made: tuple[Record, Lang, Page]) -> None:
    _, _, page = made
    assert page.references
    assert all(reference.startswith("#") for reference in page.references)
    assert "://" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page.text)
    assert "@import" not in page.text
    assert not {"script", "link", "iframe", "img", "object"} & {tag for tag, _ in page.tags}


def test_tags_close_and_every_reference_has_one_target(made: tuple[Record, Lang, Page]) -> None:
    _, _, page = made
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    targets = [reference.removeprefix("#") for reference in page.references]
    targets += re.findall(r"url\(#([^)]*)\)", page.text)
    assert set(targets) <= set(page.ids)


def test_figures_can_be_read_without_seeing_them(made: tuple[Record, Lang, Page]) -> None:
    _, _, page = made
    figures = [attributes for tag, attributes in page.tags if tag == "figure"]
    assert page.count("figcaption") == len(figures)
    assert all(attributes["aria-label"] for attributes in figures)
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(attributes.get("aria-label") or attributes.get("aria-hidden") for attributes in pictures)


def test_no_colour_of_a_figure_escapes_the_theme(made: tuple[Record, Lang, Page]) -> None:
    _, _, page = made
    pictures = "".join(re.findall(r"<svg.*?</svg>", page.text, re.DOTALL))
    assert "var(--" in pictures
    assert not re.search(r"#[0-9a-fA-F]{6}\b|\b(?:fill|stroke): (?:black|white)", pictures)


def test_thirty_cells_stay_under_two_megabytes(made: tuple[Record, Lang, Page]) -> None:
    assert len(made[2].text.encode()) < 2_000_000


# --- a sweep -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small() -> tuple[Record, tuple[RequestRow, ...], tuple[StepRow, ...]]:
    """A sweep of ten cells."""
    return samples.judged(sizes=(1, 4), requests=12)


@pytest.mark.parametrize("lang", LANGUAGES)
def test_the_answer_stands_before_everything_else(lang: Lang) -> None:
    record, requests, steps = samples.judged(sizes=(1, 4), requests=12)
    page = Page(to_html(record, requests, steps, lang))
    assert isinstance(record.metrics, SweepMetrics)
    assert record.metrics.recommendations is not None
    assert record.metrics.knee is not None
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "h2"]
    assert sections == [
        *("answer", "warnings", "throughput", "windows", "requests", "steps", "time", "spread", "why", "claims"),
        *("environment", "tables"),
    ]
    top = page.words[: page.words.index(text(lang, "report.section.throughput"), 2000)]
    for scenario in ("chat", "api", "offline", "slo"):
        assert text(lang, f"report.scenario.{scenario}") in top
    for command in record.metrics.recommendations.chat.commands.values():
        assert command.splitlines()[0] in page.words
    assert text(lang, "report.knee") in top
    assert record.warnings[0].code in top


def test_chinese_pages_hold_no_english_sentence() -> None:
    record, requests, steps = samples.judged(sizes=(1, 4), requests=12)
    page = Page(to_html(record, requests, steps, "zh"))
    ours = {words[0] for key, words in report_words().items() if " " in words[0] and "{" not in words[0]}
    kept = {words[1] for words in report_words().values()}
    assert [words for words in ours - kept if words in page.words] == []


def report_words() -> dict[str, tuple[str, str]]:
    from knee.lab.words_report import WORDS

    return dict(WORDS)


def test_every_word_of_the_report_is_asked_for() -> None:
    source = Path(to_html.__code__.co_filename).parent
    code = "".join(path.read_text() for path in [*source.rglob("*.py"), *source.rglob("*.j2")])
    asked = set(re.findall(r"report\.[\w.]+", code))
    families = tuple(name.rstrip("{") for name in re.findall(r"report\.[\w.]+\.(?=\{)", code))
    assert [key for key in report_words() if key not in asked and not key.startswith(families)] == []


def test_rows_of_void_trials_count_nowhere(small: tuple[Record, list[RequestRow], list[StepRow]]) -> None:
    record, requests, steps = small
    late = [row.model_copy(update={"void": True, "finished_at": 99.0, "repeat": -1}) for row in requests[:50]]
    slow = [step.model_copy(update={"void": True, "ms": 9_999.0}) for step in steps[:50]]
    assert to_html(record, [*late, *requests], [*slow, *steps]) == to_html(record, requests, steps)


def test_cells_that_gave_other_tokens_raise_the_alarm(
    small: tuple[Record, list[RequestRow], list[StepRow]],
) -> None:
    record, requests, steps = small
    assert isinstance(record.metrics, SweepMetrics)
    metrics = record.metrics.model_copy(update={"same_tokens": False})
    changed = record.model_copy(update={"metrics": metrics})
    assert text("en", "report.alarm.title") not in to_html(record, requests, steps)
    for lang in LANGUAGES:
        page = to_html(changed, requests, steps, lang)
        assert page.index(text(lang, "report.alarm.title")) < page.index('class="card"')


@pytest.mark.parametrize("code", ["generate_differs", "kv_cache_tokens_differ"])
def test_other_experiments_raise_it_too(code: str) -> None:
    record = plain.record("inspect", warnings=[Warning_(code=code, message="They differ.")])
    assert text("en", "report.alarm.title") in to_html(record, [], [])


def test_warnings_stand_there_with_advice_and_cells(small: tuple[Record, list[RequestRow], list[StepRow]]) -> None:
    record, requests, steps = small
    warning = Warning_(code="noisy", message="Intervals are wide.", advice="Repeat more often.", cells=[3])
    page = Page(to_html(record.model_copy(update={"warnings": [warning]}), requests, steps))
    assert isinstance(record.metrics, SweepMetrics)
    for words in ("noisy", "Intervals are wide.", "Repeat more often.", record.metrics.cells[3].label):
        assert words in page.words


def test_every_claim_is_there_with_its_verdict_and_effect(
    small: tuple[Record, list[RequestRow], list[StepRow]],
) -> None:
    record, requests, steps = small
    page = Page(to_html(record, requests, steps))
    assert record.claims
    for claim in record.claims:
        assert claim.statement in page.words
    badges = page.words.count(text("en", "report.claim.refuted"))
    assert badges >= sum(claim.verdict == "refuted" for claim in record.claims)


# --- what others wrote -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_a_record_becomes_markup_or_moves_a_cursor(kind: str) -> None:
    made, requests, steps = samples.run_of(kind) if kind != "sweep" else samples.judged(sizes=(1, 4), requests=6)
    document = made.model_dump_json()
    for words in (
        "AMD EPYC 9R14",
        "distilgpt2",
        "gpt2",
        "batching improves",
        " The",
        "dynamic",
        "knee sweep",
        "NVIDIA",
    ):
        document = document.replace(words, json_text(NASTY))
    record = Record.model_validate_json(document.replace('"name":"first', f'"name":"{json_text(NASTY)}'))
    page = Page(to_html(record, requests, steps))
    assert page.count("script") == 0
    assert page.open == []
    assert page.text.lower().count("</style") == 1
    assert "49" not in re.findall(r"a<script>alert\(1\)</script>.{0,40}", page.words)
    assert "{{ 7*7 }}" in page.words
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", page.text)
    assert "\\x1b[31m\\u202e" in page.words


def json_text(words: str) -> str:
    import json

    return json.dumps(words)[1:-1]


# --- the same page, always ---------------------------------------------------------------------------------------


def test_the_same_run_gives_the_same_bytes() -> None:
    run = samples.run_of("kvcache")
    assert to_html(*run) == to_html(*run)


def test_neither_hash_seed_nor_a_matplotlibrc_changes_a_byte(tmp_path: Path) -> None:
    script = (
        "import sys, hashlib\nfrom tests.lab.report import samples\nfrom knee.lab.report import to_html\n"
        "page = to_html(*samples.judged(repeats=3, sizes=(1, 4), requests=6))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\nprint(hashlib.sha256(page.encode()).hexdigest())"
    )
    (tmp_path / "matplotlibrc").write_text("axes.grid: False\nfont.size: 23\nsvg.fonttype: path\nlines.linewidth: 9\n")
    found = set()
    for seed, home in (("1", ""), ("2", str(tmp_path))):
        environment = {"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": ":".join(sys.path), "MATPLOTLIBRC": home}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1


def test_a_page_leaves_the_settings_of_matplotlib_alone(
    small: tuple[Record, list[RequestRow], list[StepRow]],
) -> None:
    before = dict(matplotlib.rcParams)
    to_html(*small)
    assert dict(matplotlib.rcParams) == before


# --- what old records lack ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_record_without_rows_makes_a_page(kind: str, lang: Lang) -> None:
    page = Page(to_html(plain.record(kind), [], [], lang))
    assert page.open == []
    assert f"first {kind}" in page.words


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_ended_before_its_metrics_makes_a_page(kind: str) -> None:
    record = plain.record(kind, done=False, status="interrupted", name="")
    page = Page(to_html(record, [plain.request_row()], [plain.step_row()]))
    assert text("en", "record.no_metrics") in page.words
    assert text("en", "status.interrupted") in page.words


def test_a_sweep_of_the_first_knee_makes_a_page() -> None:
    """All its cells are called 0, and nothing has an interval, an explanation or a recommendation."""
    record, requests, steps = samples.judged(sizes=(1, 4), requests=6)
    assert isinstance(record.metrics, SweepMetrics)
    old = {"cell": 0, "label": "", "intervals": {}, "explanation": None}
    cells = [cell.model_copy(update=old) for cell in record.metrics.cells]
    metrics = SweepMetrics(cells=cells, tradeoff=[], same_tokens=True, findings=["Batch 4 beats batch 1."])
    page = Page(to_html(record.model_copy(update={"metrics": metrics, "claims": []}), requests, steps))
    for words in (text("en", "report.answer.none"), "Batch 4 beats batch 1.", "dynamic (4 / 10 ms)"):
        assert words in page.words


def test_a_sweep_in_which_every_request_failed_makes_a_page() -> None:
    record, requests, steps = samples.judged(sizes=(1, 4), requests=6)
    nothing = plain.summary(None)
    assert isinstance(record.metrics, SweepMetrics)
    lost = dict.fromkeys(("queue_ms", "service_ms", "ttft_ms", "tpot_ms", "itl_ms", "e2el_ms"), nothing)
    lost |= {"output_throughput": 0.0, "request_throughput": 0.0, "intervals": {}, "duration_s": 0.0}  # type: ignore[dict-item]
    cells = [cell.model_copy(update=lost) for cell in record.metrics.cells]
    metrics = record.metrics.model_copy(update={"cells": cells, "knee": None, "recommendations": None})
    rows = [
        row.model_copy(
            update={
                "finish_reason": "error",
                "prefill_start": None,
                "first_token_at": None,
                "finished_at": None,
                "token_times": [],
                "output_tokens": 0,
            }
        )
        for row in requests
    ]
    page = Page(to_html(record.model_copy(update={"metrics": metrics}), rows, steps))
    assert text("en", "report.table.missing") in page.words


def test_lengths_and_counts_of_zero_or_one_make_a_page() -> None:
    record = plain.record("baseline")
    bare = plain.BASELINE.model_copy(
        update={"decode_step_ms": [], "prefill_runs_ms": [], "decode_ms_per_step": None, "text": None}
    )
    to_html(record.model_copy(update={"metrics": bare}), [], [])
    empty = plain.KVCACHE.model_copy(update={"cells": [], "pays_from_tokens": None})
    to_html(plain.record("kvcache").model_copy(update={"metrics": empty}), [], [])
    stepless = plain.INSPECT.model_copy(update={"steps": []})
    to_html(plain.record("inspect").model_copy(update={"metrics": stepless}), [], [])
    none = SweepMetrics(cells=[], tradeoff=[], same_tokens=True, findings=[])
    to_html(plain.record("sweep").model_copy(update={"metrics": none}), [], [])


# --- what is loaded when -----------------------------------------------------------------------------------------


def test_the_command_loads_no_figures_before_it_is_called() -> None:
    check = "import sys, knee.cli.report; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ast.literal_eval(done.stdout)}
    assert not loaded & {"matplotlib", "jinja2", "numpy", "pydantic"}


def test_the_package_offers_what_the_page_module_makes() -> None:
    assert page_of is to_html
