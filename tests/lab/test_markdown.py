"""The page has every field of the template, in both languages, and nothing in a record can break it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from knee.lab.environment import gpu_utilization
from knee.lab.markdown import escaped, to_markdown
from knee.lab.messages import LANGUAGES, Lang, text
from knee.lab.records import BatchPolicy, InspectMetrics
from knee.lab.visible import visible
from tests.lab.samples import METRICS, SWEEP, record

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
    log, knee, batch = re.findall(r"(?m)^\| dynamic \| 1 \| 10 \|.*$", page)
    assert [cell.strip() for cell in log.strip("|").split("|")][3:] == ["2.509", "204.00", "156.75", "156.75"]
    assert "1176.2" in knee
    assert "1333.0" in knee
    assert "50%" in batch
    assert "service times" in page
    assert row(page, "| dynamic | 4 | 10 | +103%")[3:] == ["+103%", "+102%", "-40%", "1.01x"]
    assert "- Batch 4 beats \\<batch 1\\>." in page


def test_what_does_not_apply_is_a_dash() -> None:
    empty = SWEEP.cells[0].model_copy(update={"max_wait_ms": None, "tpot_ms": SWEEP.cells[0].tpot_ms.model_copy()})
    empty.tpot_ms.mean = None
    page = to_markdown(record("sweep", metrics=SWEEP.model_copy(update={"cells": [empty]})))
    line = re.findall(r"(?m)^\| dynamic \| 1 \| — \|.*$", page)[1]
    assert line.split("|")[8].strip() == "—"
    assert "load_model: —" in page


def test_reasons_and_warnings_come_in_the_language_asked() -> None:
    _, reason = gpu_utilization()
    page = to_markdown(record(notes=[reason or "GPU utilization: nvidia-smi gave no number", "by hand"]), "zh")
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
