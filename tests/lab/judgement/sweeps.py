"""Sweeps made of numbers: for each cell and repeat how long requests take, and how they came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from knee.lab.judgement.judge import judge
from knee.lab.records import Record, RequestRow, StepRow
from knee.lab.spec import CellSetting, RunSpec
from knee.lab.sweep_records import Solo, SweepMetrics, TrialRow
from tests.lab.samples import record

REQUESTS, TOKENS = 8, 4
SOLO = Solo(prompt_tokens=10, tokens=TOKENS, ttft_ms=20.0, tpot_ms=10.0, e2el_ms=50.0)

Latency = Callable[[int, int], float]
"""Seconds from arrival to the last token, of a repeat and a request."""


def setting(policy: str = "continuous", size: int = 1, wait: float | None = None) -> CellSetting:
    return CellSetting(policy=policy, max_batch_size=size, max_wait_ms=wait)


def request_rows(cell: int, repeat: int, latency: Latency, tokens: str = "a") -> list[RequestRow]:
    """All requests are there at the start; the first token takes half of the latency."""
    rows = []
    for request in range(REQUESTS):
        whole = latency(repeat, request)
        times = [whole * (0.5 + 0.5 * n / (TOKENS - 1)) for n in range(TOKENS)]
        rows.append(
            RequestRow(
                cell=cell,
                repeat=repeat,
                request=request,
                scheduled_at=0.0,
                sent_at=0.0,
                prefill_start=whole * 0.1,
                first_token_at=times[0],
                finished_at=times[-1],
                prompt_tokens=10,
                output_tokens=TOKENS,
                finish_reason="length",
                token_ids_sha256=(tokens + str(request)).ljust(64, "0"),
                token_times=times,
                client_delay_ms=0.0,
            )
        )
    return rows


def step_rows(cell: int, repeat: int, count: int = 12, ms: float = 10.0, rows: int = 1) -> list[StepRow]:
    return [
        StepRow(
            cell=cell,
            repeat=repeat,
            step=step,
            started_at=step * ms / 1e3,
            ms=ms,
            prefill_tokens=10 if step == 0 else 0,
            decode_rows=0 if step == 0 else rows,
            kv_tokens=10 + step,
            waiting=0,
            host_ms=0.1,
            batch_size=rows,
        )
        for step in range(count)
    ]


def trial_row(cell: int, repeat: int, **more: Any) -> TrialRow:
    fields: dict[str, Any] = {
        "cell": cell,
        "repeat": repeat,
        "started_at": "2025-01-31T12:00:00+00:00",
        "seconds": 2.0,
        "solo": SOLO,
        "client_delay_ms": 0.0,
        "pulse_ms": (10.0, 10.0),
        "other_load": 0.0,
        "swap_gib": 0.0,
        "trace_us": 10.0,
    }
    return TrialRow(**{**fields, **more})


def make(
    cells: Sequence[tuple[CellSetting, Latency]],
    repeats: int = 5,
    trial: Callable[[int, int], dict[str, Any]] = lambda _cell, _repeat: {},
    steps: Callable[[int, int], list[StepRow]] = step_rows,
    workload: dict[str, Any] | None = None,
    options: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[RunSpec, list[RequestRow], list[StepRow]]:
    """A finished sweep: its spec and rows. `trial` adds to what is known of each trial."""
    base = record("sweep", done=False)
    asked = {"requests": REQUESTS, "prompt_tokens": [10] * REQUESTS, "times": [0.0] * REQUESTS} | (workload or {})
    draft = base.model_copy(
        update={"workload": base.workload.model_copy(update=asked), "options": options or {}, "warnings": []}
    )
    order = [(cell, repeat) for repeat in range(repeats) for cell in range(len(cells))]
    spec = RunSpec(
        status=more.pop("status", "done"),
        draft=draft,
        cells=[one for one, _ in cells],
        repeats=repeats,
        trials=[trial_row(cell, repeat, **trial(cell, repeat)) for cell, repeat in order],
        **more,
    )
    requests = [row for cell, repeat in order for row in request_rows(cell, repeat, cells[cell][1])]
    return spec, requests, [row for cell, repeat in order for row in steps(cell, repeat)]


def judged(*made: Any, **options: Any) -> tuple[Record, SweepMetrics]:
    found = judge(*(made if len(made) == 3 else make(*made, **options)))
    assert isinstance(found.metrics, SweepMetrics)
    return found, found.metrics


def steady(seconds: float, wobble: float = 0.01) -> Latency:
    """About the same in every repeat."""
    return lambda repeat, _request: seconds * (1 + wobble * ((repeat * 7) % 5 - 2) / 2)
