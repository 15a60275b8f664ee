"""A record holds only what can be written, read back and compared."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from knee.lab.records import SCHEMA_VERSION, Record, utc_now
from tests.lab.samples import BASELINE, METRICS, record, request_row, step_row

# What scripts outside knee rely on; a name that goes needs a new schema version.
CONTRACT = {
    "schema_version kind name created_at status command hardware software model workload batch_policy kv_cache "
    "metrics warnings notes claims": lambda: record(),
    "cpu cores isa memory_gib gpus": lambda: record().hardware,
    "name memory_gib driver": lambda: record().hardware.gpus[0],
    "knee git_commit git_dirty python packages": lambda: record().software,
    "name source sha256 architecture parameters dtype device": lambda: record().model,
    "requests prompt_tokens max_new_tokens arrival seed sha256 prompts": lambda: record().workload,
    "name max_batch_size max_wait_ms": lambda: record().batch_policy,
    "load_model_ms load_tokenizer_ms tokenize_ms prompt_tokens output_tokens prefill_cold_ms prefill_ms "
    "prefill_ms_per_token decode_loop_ms decode_steps decode_ms_per_step total_generate_ms output_tokens_per_s "
    "gpu_utilization kv_cache_shape text token_ids": lambda: METRICS["baseline"],
    "prefill steps matches_generate": lambda: METRICS["inspect"],
    "ms logits_shape kv_layers kv_shape": lambda: METRICS["inspect"].prefill,
    "step ms kv_len token_id token top": lambda: METRICS["inspect"].steps[0],
    "token_id token logprob": lambda: METRICS["inspect"].steps[0].top[0],
    "cells pays_from_tokens": lambda: METRICS["kvcache"],
    "prompt_length kv_cache prefill_ms token_ms decode_ms_per_step total_ms kv_bytes": lambda: METRICS["kvcache"].cells[
        0
    ],
    "cells tradeoff knee recommendations": lambda: METRICS["sweep"],
    "policy max_batch_size max_wait_ms repeats duration_s output_tokens output_throughput request_throughput queue_ms "
    "service_ms ttft_ms tpot_ms itl_ms e2el_ms slot_utilization mean_batch_size": lambda: METRICS["sweep"].cells[0],
    "cell label intervals explanation window_idle goodput failed": lambda: METRICS["sweep"].cells[0],
    "value low high n": lambda: METRICS["sweep"].cells[0].intervals["e2el_ms"],
    "repeat duration_s output_tokens values outlier": lambda: METRICS["sweep"].cells[0].repeats[0],
    "cell label tied power found_batches roofline_batch sentence": lambda: METRICS["sweep"].knee,
    "chat api offline slo": lambda: METRICS["sweep"].recommendations,
    "scenario objective limits limits_how verdict cell label tied value within against sentence commands": lambda: (
        METRICS["sweep"].recommendations.chat
    ),
    "mean p50 p90 p95 p99": lambda: METRICS["sweep"].cells[0].queue_ms,
    "cell repeat request scheduled_at sent_at prefill_start first_token_at finished_at prompt_tokens output_tokens "
    "finish_reason token_ids_sha256 token_times client_delay_ms void": request_row,
    "cell repeat step started_at ms prefill_tokens decode_rows kv_tokens waiting host_ms batch_size void": step_row,
}


@pytest.mark.parametrize("names", CONTRACT)
def test_the_names_of_the_contract_are_in_the_file(names: str) -> None:
    written = json.loads(CONTRACT[names]().model_dump_json())
    assert set(names.split()) <= set(written)


@pytest.mark.parametrize("kind", METRICS)
def test_every_kind_reads_back_as_it_was(kind: str) -> None:
    made = record(kind)
    assert Record.model_validate_json(made.model_dump_json(), strict=True) == made


def test_a_sweep_of_an_earlier_knee_is_read() -> None:
    written = json.loads(record("sweep").model_dump_json())
    del written["claims"], written["workload"]["times"], written["workload"]["new_tokens"]
    for name in ("step_times", "limits", "costs", "solo", "overhead", "left_out", "trials"):
        del written["metrics"][name]
    written["metrics"] |= {"knee": None, "recommendations": None}
    for cell in written["metrics"]["cells"]:
        del cell["label"], cell["intervals"], cell["explanation"], cell["window_idle"], cell["goodput"]
        del cell["repeats"][0]["values"], cell["repeats"][0]["outlier"]
    del written["metrics"]["tradeoff"][0]["effects"]
    found = Record.model_validate_json(json.dumps(written), strict=True)
    assert found.metrics is not None
    assert found.metrics.kind == "sweep"


def test_bytes_that_are_no_text_are_kept_as_visible_escapes() -> None:
    made = record(name="a\udcff", command=["knee", "\ud800"])
    assert (made.name, made.command) == ("a\\udcff", ["knee", "\\ud800"])
    assert Record.model_validate_json(made.model_dump_json()) == made


def test_done_without_metrics_is_refused() -> None:
    with pytest.raises(ValidationError, match="done has metrics"):
        record(metrics=None)


def test_numbers_are_finite_and_counts_not_negative() -> None:
    for wrong in ({"prefill_ms": float("inf")}, {"prefill_ms": -1.0}, {"gpu_utilization": 1.5}, {"prompt_tokens": 0}):
        with pytest.raises(ValidationError):
            type(BASELINE).model_validate({**BASELINE.model_dump(), **wrong})
    with pytest.raises(ValidationError, match="finite"):
        record(options={"slo": {"ttft": float("nan")}})


def test_the_present_moment_is_a_valid_time_of_a_record() -> None:
    assert record(created_at=utc_now()).schema_version == SCHEMA_VERSION
