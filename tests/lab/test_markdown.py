"""The page has every field of the template, in both languages, and nothing in a record can break it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from knee.lab.markdown import escaped, to_markdown
from knee.lab.messages import LANGUAGES, Lang, text
from knee.lab.records import BatchPolicy, InspectMetrics, Warning_
from knee.lab.sweep_records import Claim, Interval
from knee.lab.visible import visible
from tests.lab.samples import METRICS, SWEEP, recommendation, record

TEMPLATE = [
    "name",
    "date",
    "hardware",
    "model",
    "prompt",
    "batch_policy",
    "kv_cache",
    "metrics",
    "load_model",
    "load_tokenizer",
    "prefill",
    "decode_loop",
    "tokens_per_s",
    "gpu_utilization",
    "notes",
]
NASTY = "| `a` <b>x</b> **c**\n# d\r\x1b[31m \u202e &amp; [l](http://x) \\| $x$ ~~y~~ _z_"


def html(page: str) -> str:
    return MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(page)


def row(page: str, start: str) -> list[str]:
    [line] = [line for line in page.splitlines() if line.startswith(start)]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("lang", LANGUAGES)
@pytest.mark.parametrize("kind", METRICS)
def test_every_field_of_the_template_is_there_in_its_order(kind: str, lang: Lang) -> None:
    page = to_markdown(record(kind), lang)
    places = [page.find(f"{text(lang, f'log.{name}')}") for name in TEMPLATE]
    assert -1 not in places
    template = page[: page.index("\n\n", places[-1])]
    found = re.findall(r"^ *- (?:\*\*)?(.+?)(?:\*\*)?:", template, re.MULTILINE)
    assert [name for name in found if name in [text(lang, f"log.{key}") for key in TEMPLATE]] == [
        text(lang, f"log.{key}") for key in TEMPLATE
    ]


@pytest.mark.parametrize("kind", METRICS)
def test_a_run_without_metrics_has_a_page_too(kind: str) -> None:
    page = to_markdown(record(kind, done=False))
    assert "There are no metrics" in page
    assert "GPU utilization: —" in page


def test_the_model_s_line_says_what_it_ran_on() -> None:
    made = record()
    ran = made.model.model_copy(update={"device": "cpu", "isa": "avx2", "threads": 2})
    assert "distilgpt2 @ float32 (cpu, avx2, threads: 2)" in to_markdown(made.model_copy(update={"model": ran}), "en")
    assert "distilgpt2 @ float32 (cpu)" in to_markdown(made, "en")


def test_cold_and_warm_prefill_are_two_numbers() -> None:
    page = to_markdown(record())
    assert "434.26 ms cold" in page
    assert row(page, "| Prefill, cold")[1] == "434.26 ms"
    assert row(page, "| Prefill, warm: median of 3 runs")[1] == "92.00 ms"


def test_the_log_s_latency_columns_hold_service_times_and_knee_s_hold_the_queue() -> None:
    page = to_markdown(record("sweep"))
    log, knee, _, batch = re.findall(r"(?m)^\| dynamic \| 1 \| 10 \|.*$", page)
    assert [cell.strip() for cell in log.strip("|").split("|")][3:] == ["2.509", "204.00", "156.75", "156.75"]
    assert "1176.2" in knee
    assert "1333.0" in knee
    assert "50%" in batch
    assert "service times" in page
    assert row(page, "| dynamic | 4 | 10 | +103%")[3:] == ["+103%", "+102%", "-40%", "1.01x"]
    assert "- Batch 4 beats \\<batch 1\\>." in page


def test_what_to_run_comes_before_the_tables_and_the_user_s_own_limits_first() -> None:
    given = SWEEP.recommendations
    assert given is not None
    own = given.model_copy(update={"slo": recommendation("slo")})
    page = to_markdown(record("sweep", metrics=SWEEP.model_copy(update={"recommendations": own})))
    parts = [
        "**Within your limits** (clear): For slo: dynamic (4 / 10 ms)",
        "Limits: e2el 600.00 ms. The limits given with --slo",
        "**Live chat** (clear): For chat: dynamic (4 / 10 ms)",
        "**API service** (clear): For api",
        "**Offline work** (cannot tell): Too few \\<repeats\\> to tell.",
        "**Knee**: The knee is \\*dynamic\\* (4 / 10 ms).",
        "- Batch 4 beats",
        "- There was no time for \\<batch 8\\>.",
        "| dynamic | 1 |",
    ]
    places = [page.find(part) for part in parts]
    assert -1 not in places, parts[places.index(-1)]
    assert places == sorted(places)


def test_commands_can_be_copied_line_by_line() -> None:
    page = to_markdown(record("sweep"))
    assert "\n```\nknee sweep --policies dynamic --batch-sizes 4\n```\n" in page
    assert "\n```\na {\n  b: 1\n}\n```\n" in page


def test_no_command_ends_its_block() -> None:
    given = recommendation("chat").model_copy(update={"commands": {"knee": "a ``` # b\x1b[31m\n```\n# c"}})
    assert SWEEP.recommendations is not None
    answer = SWEEP.recommendations.model_copy(update={"chat": given})
    rendered = html(to_markdown(record("sweep", metrics=SWEEP.model_copy(update={"recommendations": answer}))))
    assert "<code>a  # b\\x1b[31m\n\n# c\n</code>" in rendered


def test_a_median_has_its_interval_beside_it_where_there_is_one() -> None:
    line = re.findall(r"(?m)^\| dynamic \| 4 \| 10 \|.*$", to_markdown(record("sweep")))[2]
    assert line.split(" | ")[4:8] == ["204.00 [199.92, 208.08]", "1333.0 [1306.3, 1359.7]", "—", "—"]
    few = SWEEP.cells[0].model_copy(update={"intervals": {"e2el_ms": Interval(value=5.0, low=None, high=None, n=2)}})
    page = to_markdown(record("sweep", metrics=SWEEP.model_copy(update={"cells": [few]})))
    assert re.findall(r"(?m)^\| dynamic \| 1 \| 10 \|.*$", page)[2].split(" | ")[5] == "5.00"


def test_claims_that_were_measured_are_in_a_table() -> None:
    made = [
        Claim(code="a", statement="A | costs.", verdict="refuted", effect=None, sentence="It *does* not."),
        Claim(code="b", statement="B pays.", verdict="not_measured", effect=None, sentence="See elsewhere."),
    ]
    page = to_markdown(record("baseline", claims=made))
    assert row(page, "| A \\| costs.")[-1] == "It \\*does\\* not."
    assert "B pays." not in page
    assert html(page).count("<h2>") == html(to_markdown(record("baseline", claims=[]))).count("<h2>") + 1
    assert html(to_markdown(record("baseline", claims=made[1:]))).count("<h2>") == html(page).count("<h2>") - 1


@pytest.mark.parametrize("lang", LANGUAGES)
def test_a_warning_comes_with_its_advice(lang: Lang) -> None:
    doubt = Warning_(code="swap", message=text("en", "warning.swap", gib="0.5"), advice=text("en", "advice.swap"))
    page = to_markdown(record(warnings=[doubt]), lang)
    said = f"swap: {text(lang, 'warning.swap', gib='0.5')} {text(lang, 'advice.swap')}"
    assert escaped(said) in page


def test_what_does_not_apply_is_a_dash() -> None:
    empty = SWEEP.cells[0].model_copy(update={"max_wait_ms": None, "tpot_ms": SWEEP.cells[0].tpot_ms.model_copy()})
    empty.tpot_ms.mean = None
    page = to_markdown(record("sweep", metrics=SWEEP.model_copy(update={"cells": [empty]})))
    line = re.findall(r"(?m)^\| dynamic \| 1 \| — \|.*$", page)[1]
    assert line.split("|")[8].strip() == "—"
    assert "load_model: —" in page


def test_reasons_and_warnings_come_in_the_language_asked() -> None:
    page = to_markdown(record(notes=[text("en", "note.no_gpu"), "by hand"]), "zh")
    assert "GPU 利用率：" in page
    assert "    - by hand" in page


def test_nothing_in_a_record_breaks_the_page() -> None:
    made = record("inspect", name=NASTY, notes=[NASTY], command=["knee", NASTY])
    made.workload.prompts = [NASTY, "second"]
    made.model.name = made.hardware.cpu = NASTY
    made.batch_policy = BatchPolicy(name=NASTY, max_batch_size=4, max_wait_ms=10.0)
    step = METRICS["inspect"].steps[0].model_copy(update={"token": NASTY})
    made.metrics = METRICS["inspect"].model_copy(update={"steps": [step] * 3})
    page = to_markdown(made)
    clean = to_markdown(
        record("inspect", metrics=made.metrics.model_copy(update={"steps": [METRICS["inspect"].steps[0]] * 3}))
    )
    tags = re.compile(r"</?\w+")
    extra = tags.findall(html(to_markdown(record("inspect", notes=["one"], metrics=made.metrics))))
    assert tags.findall(html(page)) == extra
    assert page.count("\n| ") == clean.count("\n| ")
    assert "(and 1 more in record.json)" in page
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f\u202e]", page)


@given(st.text())
def test_escaped_text_reads_as_it_was(words: str) -> None:
    rendered = MarkdownIt("commonmark").enable(["table", "strikethrough"]).renderInline(f"x{escaped(words)}x")
    plain = rendered.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", '"').replace("&amp;", "&")
    assert plain == f"x{visible(words)}x"


def test_a_megabyte_of_prompt_is_cut_and_says_so() -> None:
    made = record()
    made.workload.prompts = ["x" * 10**6]
    page = to_markdown(made)
    assert len(page) < 10_000
    assert "1000000 characters" in page


def test_prompts_given_as_token_ids_are_shown_as_such() -> None:
    made = record()
    made.workload.prompts = [[1, 2, 3]]
    assert "token ids 1, 2, 3" in to_markdown(made)


def test_a_kv_cache_page_says_that_both_ran_and_what_the_prompt_was() -> None:
    made = record("kvcache", options={"prompt": ["Why?"]})
    page = to_markdown(made)
    assert "**KV cache**: on and off" in page
    assert "“Why?”, repeated and cut to " in page


def test_without_a_cache_a_step_has_no_kv_length() -> None:
    made = record("inspect")
    assert isinstance(made.metrics, InspectMetrics)
    off = made.metrics.kv_cache_off
    steps = [step.model_copy(update={"kv_len": 0}) for step in off.steps]
    metrics = made.metrics.model_copy(update={"kv_cache_off": off.model_copy(update={"steps": steps})})
    page = to_markdown(made.model_copy(update={"metrics": metrics}))
    rows = [line for line in page.splitlines() if line.startswith("| 1 |")]
    assert rows[-1].split(" | ")[2] == "—"
