"""The parts of the page for the smaller experiments: baseline, inspect, kvcache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from knee.lab.markdown import gpu_facts
from knee.lab.messages import Lang
from knee.lab.records import BaselineMetrics, InspectMetrics, InspectStep, KvCacheCell, KvCacheMetrics, Record
from knee.lab.report.blocks import Block, Facts, Folded, Section, Sentences, Table
from knee.lab.report.figures import baseline, inspect, kvcache
from knee.lab.report.figures.canvas import Picture
from knee.lab.report.numbers import NOTHING, number, percent, whole
from knee.lab.report.sweep import claims

Say = Callable[..., str]

_LONGEST_TEXT = 4000


def sections(record: Record, say: Say, lang: Lang) -> list[Section]:
    """What the experiment measured, and what follows from it."""
    match record.metrics:
        case BaselineMetrics() as metrics:
            found = _baseline(metrics, say)
        case InspectMetrics() as metrics:
            found = _inspect(metrics, say)
        case KvCacheMetrics() as metrics:
            found = _kvcache(metrics, say)
        case _:
            found = []
    pictures = {block.name: block.label for section in found for block in section.blocks if isinstance(block, Picture)}
    return [*found, claims(record, pictures, say, lang)]


def _section(name: str, blocks: Sequence[Block | None], say: Say) -> Section:
    return Section("measured", say(f"{name}.title"), [block for block in blocks if block is not None])


# --- baseline ----------------------------------------------------------------------------------------------------


def _baseline(metrics: BaselineMetrics, say: Say) -> list[Section]:
    shape = metrics.kv_cache_shape
    facts = [
        (say("log.load_model"), _ms(metrics.load_model_ms)),
        (say("log.load_tokenizer"), _ms(metrics.load_tokenizer_ms)),
        (say("baseline.tokenize"), _ms(metrics.tokenize_ms)),
        (say("baseline.cold"), _ms(metrics.prefill_cold_ms)),
        (say("baseline.warm", runs=len(metrics.prefill_runs_ms)), _ms(metrics.prefill_ms)),
        (say("baseline.per_token"), _ms(metrics.prefill_ms_per_token)),
        (say("baseline.decode_loop", steps=metrics.decode_steps), _ms(metrics.decode_loop_ms)),
        (say("baseline.decode_step"), _ms(metrics.decode_ms_per_step)),
        (say("baseline.total"), _ms(metrics.total_generate_ms)),
        (say("baseline.throughput"), f"{number(metrics.output_tokens_per_s)} tokens/s"),
        (say("log.gpu_utilization"), percent(metrics.gpu_utilization)),
        (say("baseline.kv_shape"), NOTHING if shape is None else f"({', '.join(map(str, shape))})"),
        (say("report.tokens"), f"{metrics.prompt_tokens} → {metrics.output_tokens}"),
        *gpu_facts(metrics.gpu, say)[1:],  # its utilization stands above
    ]
    output = ", ".join(map(str, metrics.token_ids)) if metrics.text is None else metrics.text
    told = Sentences([f"“{output[:_LONGEST_TEXT]}”"], say("record.output"), verbatim=True)
    steps = [
        *([say("report.raw.warm_prefill"), str(n), number(ms)] for n, ms in enumerate(metrics.prefill_runs_ms, 1)),
        *([say("report.raw.decode_step"), str(n), number(ms)] for n, ms in enumerate(metrics.decode_step_ms, 1)),
    ]
    raw = Folded(say("report.raw.steps"), [Table(["", say("inspect.step"), "ms"], steps)])
    return [_section("baseline", [baseline.draw(metrics, say), Facts(facts), told, raw], say)]


# --- inspect -----------------------------------------------------------------------------------------------------


def _inspect(metrics: InspectMetrics, say: Say) -> list[Section]:
    off = metrics.kv_cache_off
    prefill = [
        (say("report.inspect.prefill"), _ms(metrics.prefill.ms)),
        (say("report.inspect.prefill_off"), _ms(off.prefill.ms)),
        ("logits", _shape(metrics.prefill.logits_shape)),
        (say("log.kv_cache"), f"{metrics.prefill.kv_layers} × {_shape(metrics.prefill.kv_shape)}"),
        (say("report.inspect.matches"), _yes(metrics.matches_generate, say)),
        (say("report.inspect.same_off"), _yes(off.same_tokens, say)),
    ]
    blocks = [inspect.draw(metrics, say), Facts(prefill), _step_table(metrics, say)]
    return [_section("inspect", blocks, say)]


def _step_table(metrics: InspectMetrics, say: Say) -> Table:
    off = {step.step: step.ms for step in metrics.kv_cache_off.steps}
    rows = [
        [
            _token(step.token, step.token_id),
            _top(step),
            str(step.step),
            str(step.kv_len or NOTHING),
            number(step.ms),
            number(off.get(step.step)),
        ]
        for step in metrics.steps
    ]
    header = [say(f"inspect.{name}") for name in ("token", "top", "step", "kv_len")]
    return Table([*header, say("report.inspect.ms_on"), say("report.inspect.ms_off")], rows, texts=2)


def _top(step: InspectStep) -> str:
    return ", ".join(f"{_token(one.token, one.token_id)} {math.exp(one.logprob):.1%}" for one in step.top) or NOTHING


def _token(token: str | None, token_id: int) -> str:
    return str(token_id) if token is None else f"“{token}”"


# --- kvcache -----------------------------------------------------------------------------------------------------


def _kvcache(metrics: KvCacheMetrics, say: Say) -> list[Section]:
    columns = ("kv_cache", "prompt_length", "prefill", "second_token", "last_token", "decode_step", "total", "memory")
    rows = [_kvcache_row(cell, say) for cell in metrics.cells]
    table = Table([say(f"kvcache.{name}") for name in columns], rows)
    every = [
        [say(f"switch.{cell.kv_cache}"), whole(cell.prompt_length), str(number_), number(ms)]
        for cell in metrics.cells
        for number_, ms in enumerate(cell.token_ms, 1)
    ]
    header = [say("kvcache.kv_cache"), say("kvcache.prompt_length"), say("report.raw.token"), "ms"]
    raw = Folded(say("report.raw.tokens"), [Table(header, every)])
    return [_section("kvcache", [kvcache.draw(metrics, say), table, raw], say)]


def _kvcache_row(cell: KvCacheCell, say: Say) -> list[str]:
    decode = cell.token_ms[1:]  # the first token is the prefill's
    times = (cell.prefill_ms, decode[0] if decode else None, decode[-1] if decode else None)
    memory = cell.kv_bytes / 2**20 if cell.kv_cache == "on" else None
    numbers = (*times, cell.decode_ms_per_step, cell.total_ms, memory)
    return [say(f"switch.{cell.kv_cache}"), whole(cell.prompt_length), *map(number, numbers)]


def _shape(shape: Sequence[int] | None) -> str:
    return NOTHING if shape is None else f"({', '.join(map(str, shape))})"


def _yes(answer: bool, say: Say) -> str:
    return say("answer.yes" if answer else "answer.no")


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{number(value)} ms"
