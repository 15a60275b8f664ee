"""A record as Markdown: the experiment log's template with every field filled, then the tables of its kind.

Pure: a record in, text out, nothing computed that the record does not say. Names, prompts and tokens come from
anywhere, so everything that is not ours is escaped, and control characters are shown instead of sent.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from knee.lab.messages import Lang, text, translated
from knee.lab.records import (
    BaselineMetrics,
    InspectMetrics,
    InspectPrefill,
    InspectStep,
    KvCacheCell,
    KvCacheMetrics,
    Record,
    Warning_,
)
from knee.lab.sweep_records import Claim, GpuUse, Recommendation, Recommendations, SweepCell, SweepMetrics, Tradeoff
from knee.lab.visible import visible

NOTHING = "—"
_LONGEST_TEXT = 2000
_LONGEST_LIST = 64

Say = Callable[..., str]  # key, values -> words in the language of the page
Rows = Iterable[Sequence[str]]


def to_markdown(record: Record, lang: Lang = "en") -> str:
    """The whole record as one Markdown page, ending in a newline."""
    say = partial(text, lang)
    blocks = [f"# {escaped(record.name) or record.kind}", _template(record, say, lang), *_sections(record, say, lang)]
    return "\n\n".join(block for block in blocks if block) + "\n"


# --- the template ------------------------------------------------------------------------------------------------


def _where(record: Record) -> str:
    """Device, instruction set and threads, as far as the record has them."""
    parts = [record.model.device, record.model.isa, record.model.threads and f"threads: {record.model.threads}"]
    known = ", ".join(escaped(str(part)) for part in parts if part)
    return f" ({known})" if known else ""


def _template(record: Record, say: Say, lang: Lang) -> str:
    fields = [
        ("log.name", escaped(record.name) or NOTHING),
        ("log.date", record.created_at),
        ("log.hardware", _hardware(record, say)),
        ("log.model", f"{escaped(record.model.name)} @ {escaped(record.model.dtype)}{_where(record)}"),
        ("log.prompt", _prompt(record, say)),
        ("log.batch_policy", _policy(record)),
        ("log.kv_cache", say(f"switch.{'both' if record.kind == 'kvcache' else record.kv_cache}")),
    ]
    lines = [f"- **{say(key)}**: {value}" for key, value in fields]
    lines.append(f"- **{say('log.metrics')}**:")
    lines += [f"    - {say(key)}: {value}" for key, value in _log_metrics(record, say)]
    lines += _sentences(say("log.notes"), [translated(lang, note) for note in record.notes])
    if record.warnings:
        warnings = [_warning(warning, lang) for warning in record.warnings]
        lines += _sentences(say("record.warnings"), warnings)
    return "\n".join([*lines, *_circumstances(record, say)])


def _sentences(title: str, sentences: Sequence[str]) -> list[str]:
    if not sentences:
        return [f"- **{title}**: {NOTHING}"]
    return [f"- **{title}**:", *(f"    - {escaped(sentence)}" for sentence in sentences)]


def _warning(found: Warning_, lang: Lang) -> str:
    return f"{found.code}: {advised(found, lang)}"


def advised(found: Warning_, lang: Lang) -> str:
    """A warning with its advice behind it, each a sentence."""
    message = translated(lang, found.message)
    if not found.advice:
        return message
    stop = "" if message[-1:] in ".。!！" else "。" if lang == "zh" else "."
    return f"{message}{stop} {translated(lang, found.advice)}"


def _circumstances(record: Record, say: Say) -> list[str]:
    software, workload = record.software, record.workload
    commit = f" ({software.git_commit[:12]}{'+' if software.git_dirty else ''})" if software.git_commit else ""
    line = say(
        "record.workload_line",
        requests=workload.requests,
        prompt=_span(workload.prompt_tokens),
        new=workload.max_new_tokens,
        arrival=escaped(workload.arrival),
        seed=workload.seed,
    )
    python = f"knee {escaped(software.knee)}{commit}, Python {escaped(software.python)}"
    return [
        f"- **{say('record.status')}**: {say(f'status.{record.status}')}",
        f"- **{say('record.workload')}**: {line}",
        f"- **{say('record.software')}**: {python}, {escaped(software.platform)}",
        f"- **{say('record.command')}**: {escaped(shlex.join(record.command)) or NOTHING}",
    ]


def _hardware(record: Record, say: Say) -> str:
    hardware = record.hardware
    gpus = [
        say("record.gpu", name=escaped(gpu.name), memory=gpu.memory_gib, driver=escaped(gpu.driver))
        for gpu in hardware.gpus
    ]
    cpu = say("record.hardware", cpu=escaped(hardware.cpu), cores=hardware.cores, memory=hardware.memory_gib)
    isa = " ".join(hardware.isa)
    return f"GPU: {'; '.join(gpus) or say('record.none')} · CPU: {cpu}{f' ({escaped(isa)})' if isa else ''}"


def _prompt(record: Record, say: Say) -> str:
    workload, given = record.workload, record.options.get("prompt")
    if record.kind == "kvcache" and isinstance(given, list) and len(given) == 1:
        lengths = ", ".join(map(str, workload.prompt_tokens))
        return say("record.cut_to", prompt=_shortened(str(given[0]), say), lengths=lengths)
    if not workload.prompts:
        return NOTHING
    first = workload.prompts[0]
    shown = _shortened(first, say) if isinstance(first, str) else say("record.token_ids", ids=_ids(first))
    more = len(workload.prompts) - 1
    return shown + (say("record.more_prompts", count=more) if more else "")


def _shortened(words: str, say: Say) -> str:
    cut = say("record.cut", length=len(words)) if len(words) > _LONGEST_TEXT else ""
    return f"“{escaped(words[:_LONGEST_TEXT])}”{cut}"


def _policy(record: Record) -> str:
    """A policy with its size and window; of a sweep every policy with all its sizes and windows."""
    cells = record.metrics.cells if isinstance(record.metrics, SweepMetrics) else []
    settings = [(cell.policy, cell.max_batch_size, cell.max_wait_ms) for cell in cells]
    only = record.batch_policy
    settings = settings or [(only.name, only.max_batch_size, only.max_wait_ms)]
    policies = []
    for name in dict.fromkeys(name for name, _, _ in settings):
        sizes = dict.fromkeys(str(size) for policy, size, _ in settings if policy == name)
        waits = dict.fromkeys(f"{wait:g}" for policy, _, wait in settings if policy == name and wait is not None)
        windows = f"{', '.join(waits)} ms" if waits else NOTHING
        policies.append(f"{escaped(name)} ({', '.join(sizes)} / {windows})")
    return "; ".join(policies)


def _log_metrics(record: Record, say: Say) -> list[tuple[str, str]]:
    """The six metrics of the template, in its order; what an experiment does not measure is a dash."""
    keys = ["load_model", "load_tokenizer", "prefill", "decode_loop", "tokens_per_s", "gpu_utilization"]
    values = {
        "load_model": _ms(record.model.load_model_ms),
        "load_tokenizer": _ms(record.model.load_tokenizer_ms),
        "gpu_utilization": say("record.see_baseline"),
    }
    match record.metrics:
        case BaselineMetrics() as metrics:
            values |= _baseline_log(metrics, say)
        case InspectMetrics() as metrics:
            total = sum(step.ms for step in metrics.steps)
            values |= {
                "prefill": _ms(metrics.prefill.ms),
                "decode_loop": say("record.steps", total=total, steps=len(metrics.steps)),
                "tokens_per_s": _number((1 + len(metrics.steps)) / (metrics.prefill.ms + total) * 1e3),
            }
        case KvCacheMetrics():
            values |= dict.fromkeys(["prefill", "decode_loop"], say("record.see_table"))
        case SweepMetrics() as metrics:
            values["tokens_per_s"] = say("record.see_table")
            if any(cell.gpu for cell in metrics.cells):
                values["gpu_utilization"] = say("record.see_table")
    return [(f"log.{key}", values.get(key, NOTHING)) for key in keys]


def _baseline_log(metrics: BaselineMetrics, say: Say) -> dict[str, str]:
    prefill = say(
        "record.prefill_cold_warm",
        cold=metrics.prefill_cold_ms,
        warm=metrics.prefill_ms,
        per_token=metrics.prefill_ms_per_token,
    )
    loop = {"total": metrics.decode_loop_ms, "steps": metrics.decode_steps, "each": metrics.decode_ms_per_step}
    return {
        "load_model": _ms(metrics.load_model_ms),
        "load_tokenizer": _ms(metrics.load_tokenizer_ms),
        "prefill": prefill,
        "decode_loop": say("record.steps" if loop["each"] is None else "record.steps_each", **loop),
        "tokens_per_s": _number(metrics.output_tokens_per_s),
        "gpu_utilization": _percent(metrics.gpu_utilization),
    }


# --- a section for each kind -------------------------------------------------------------------------------------


def _sections(record: Record, say: Say, lang: Lang) -> list[str]:
    return [*_of_its_kind(record, say, lang), *_claims(record.claims, say, lang)]


def _of_its_kind(record: Record, say: Say, lang: Lang) -> list[str]:
    match record.metrics:
        case BaselineMetrics() as metrics:
            return _baseline(metrics, say)
        case InspectMetrics() as metrics:
            return _inspect(metrics, say)
        case KvCacheMetrics() as metrics:
            return _kvcache(metrics, say)
        case SweepMetrics() as metrics:
            return _sweep(metrics, say, lang)
    return [say("record.no_metrics")]


def _baseline(metrics: BaselineMetrics, say: Say) -> list[str]:
    rows = [
        (say("baseline.tokenize"), _ms(metrics.tokenize_ms)),
        (say("baseline.cold"), _ms(metrics.prefill_cold_ms)),
        (say("baseline.warm", runs=len(metrics.prefill_runs_ms)), _ms(metrics.prefill_ms)),
        (say("baseline.per_token"), _ms(metrics.prefill_ms_per_token)),
        (say("baseline.decode_loop", steps=metrics.decode_steps), _ms(metrics.decode_loop_ms)),
        (say("baseline.decode_step"), _ms(metrics.decode_ms_per_step)),
        (say("baseline.total"), _ms(metrics.total_generate_ms)),
        (say("baseline.throughput"), f"{_number(metrics.output_tokens_per_s)} tokens/s"),
        (say("baseline.kv_shape"), _shape(metrics.kv_cache_shape)),
        *gpu_facts(metrics.gpu, say),
    ]
    output = _shortened(metrics.text, say) if metrics.text is not None else _ids(metrics.token_ids)
    header = [say("baseline.number"), say("baseline.value")]
    return [f"## {say('baseline.title')}", _table(header, rows), f"**{say('record.output')}**: {output}"]


def _inspect(metrics: InspectMetrics, say: Say) -> list[str]:
    off = metrics.kv_cache_off
    return [
        f"## {say('inspect.title')}",
        _prefill(metrics.prefill, say),
        _steps(metrics.steps, say),
        say("inspect.matches", answer=_yes(metrics.matches_generate, say)),
        f"## {say('inspect.title_off')}",
        _prefill(off.prefill, say),
        _steps(off.steps, say),
        say("inspect.same_tokens", answer=_yes(off.same_tokens, say)),
    ]


def _prefill(prefill: InspectPrefill, say: Say) -> str:
    shapes = {"logits": _shape(prefill.logits_shape), "kv": _shape(prefill.kv_shape)}
    return say("inspect.prefill", ms=prefill.ms, layers=prefill.kv_layers, **shapes)


def _steps(steps: Sequence[InspectStep], say: Say) -> str:
    header = [say(f"inspect.{name}") for name in ("step", "ms", "kv_len", "token_id", "token", "top")]
    return _table(header, [_step(step) for step in steps])


def _step(step: InspectStep) -> list[str]:
    top = ", ".join(
        f"{_token(candidate.token, candidate.token_id)} {math.exp(candidate.logprob):.1%}" for candidate in step.top
    )
    token = NOTHING if step.token is None else _token(step.token, step.token_id)
    return [str(step.step), _number(step.ms), str(step.kv_len or NOTHING), str(step.token_id), token, top or NOTHING]


def _kvcache(metrics: KvCacheMetrics, say: Say) -> list[str]:
    columns = ("prompt_length", "kv_cache", "prefill", "second_token", "last_token", "decode_step", "total", "memory")
    header = [say(f"kvcache.{name}") for name in columns]
    pays = "kvcache.never_pays" if metrics.pays_from_tokens is None else "kvcache.pays_from"
    return [
        f"## {say('kvcache.title')}",
        _table(header, [_kvcache_row(cell, say) for cell in metrics.cells]),
        say(pays, tokens=metrics.pays_from_tokens, bytes=metrics.kv_bytes_per_token),
        say("kvcache.same_tokens", answer=_yes(metrics.same_tokens, say)),
    ]


def _kvcache_row(cell: KvCacheCell, say: Say) -> list[str]:
    decode = cell.token_ms[1:]  # the first token is the prefill's
    return [
        str(cell.prompt_length),
        say(f"switch.{cell.kv_cache}"),
        _number(cell.prefill_ms),
        _number(decode[0] if decode else None),
        _number(decode[-1] if decode else None),
        _number(cell.decode_ms_per_step),
        _number(cell.total_ms),
        _number(cell.kv_bytes / 2**20),
    ]


def _sweep(metrics: SweepMetrics, say: Say, lang: Lang) -> list[str]:
    cells = metrics.cells
    blocks = [
        *_answer(metrics, say, lang),
        f"## {say('sweep.title')}",
        f"### {say('sweep.title_log')}",
        _sweep_table(cells, say, _LOG_COLUMNS),
        say("sweep.log_columns"),
        f"### {say('sweep.title_knee')}",
        _sweep_table(cells, say, _KNEE_COLUMNS),
        say("sweep.definitions"),
        f"### {say('sweep.title_intervals')}",
        _sweep_table(cells, say, _INTERVAL_COLUMNS),
        say("sweep.intervals"),
        f"### {say('sweep.title_batch')}",
        _sweep_table(cells, say, _BATCH_COLUMNS),
        say("sweep.same_tokens", answer=_yes(metrics.same_tokens, say)),
    ]
    if any(cell.gpu for cell in cells):
        blocks += [f"### {say('gpu.title')}", _sweep_table(cells, say, _GPU_COLUMNS), say("gpu.about")]
    if metrics.tradeoff:
        blocks += [f"### {say('sweep.title_tradeoff')}", _tradeoff_table(metrics.tradeoff, say)]
    return blocks


def _answer(metrics: SweepMetrics, say: Say, lang: Lang) -> list[str]:
    """The recommendations and the knee with their reasons, before any table."""
    blocks = [f"## {say('answer.title')}"]
    if metrics.recommendations is not None:
        blocks += [_recommendation(one, say, lang) for one in in_turn(metrics.recommendations)]
    if metrics.knee is not None:
        blocks.append(f"**{say('answer.knee')}**: {escaped(translated(lang, metrics.knee.sentence))}")
    if metrics.findings:
        findings = [f"- {escaped(translated(lang, finding))}" for finding in metrics.findings]
        blocks += [f"### {say('record.findings')}", "\n".join(findings)]
    if metrics.left_out:
        blocks += [
            f"### {say('answer.left_out')}",
            "\n".join(f"- {escaped(translated(lang, one))}" for one in metrics.left_out),
        ]
    return blocks if len(blocks) > 1 else []


def in_turn(recommendations: Recommendations) -> list[Recommendation]:
    """Those that are there: the user's own limits first."""
    own = [recommendations.slo] if recommendations.slo else []
    return [*own, recommendations.chat, recommendations.api, recommendations.offline]


def _recommendation(given: Recommendation, say: Say, lang: Lang) -> str:
    head = f"**{say(f'answer.{given.scenario}')}** ({say(f'answer.{given.verdict}')})"
    lines = [f"{head}: {escaped(translated(lang, given.sentence))}"]
    if given.limits_how:
        limits = (
            ", ".join(f"{name} {_number(value)} ms" for name, value in given.limits.items()) if given.limits else ""
        )
        lines.append(f"{say('answer.limits', limits=limits or NOTHING)} {escaped(translated(lang, given.limits_how))}")
    lines += [f"{name}:\n\n```\n{visible_block(command)}\n```" for name, command in given.commands.items()]
    return "\n\n".join(lines)


def visible_block(command: str) -> str:
    """A command as it is, line by line, with nothing in it that could end the block or move a cursor."""
    return "\n".join(visible(line) for line in command.replace("```", "").split("\n"))


def _claims(found: Sequence[Claim], say: Say, lang: Lang) -> list[str]:
    """What such logs conclude, and whether it holds here; what was not measured is left to `knee claims`."""
    rows = [
        (
            escaped(translated(lang, claim.statement)),
            say(f"answer.{claim.verdict}"),
            escaped(translated(lang, claim.sentence)),
        )
        for claim in found
        if claim.verdict != "not_measured"
    ]
    if not rows:
        return []
    header = [say(f"answer.{name}") for name in ("statement", "verdict", "evidence")]
    return [f"## {say('answer.claims')}", _table(header, rows)]


def _wait(of: SweepCell | Tradeoff) -> str:
    return NOTHING if of.max_wait_ms is None else f"{of.max_wait_ms:g}"


_Column = tuple[str, Callable[[SweepCell], str]]  # the header's message, and the cell's number

_BATCH: tuple[_Column, ...] = (
    ("sweep.policy", lambda cell: escaped(cell.policy)),
    ("sweep.batch", lambda cell: str(cell.max_batch_size)),
    ("sweep.wait", _wait),
)
_LOG_COLUMNS: tuple[_Column, ...] = (
    *_BATCH,
    ("sweep.total", lambda cell: f"{cell.duration_s:.3f}"),
    ("sweep.tokens_per_s", lambda cell: _number(cell.output_throughput)),
    ("sweep.mean_latency", lambda cell: _number(cell.service_ms.mean)),
    ("sweep.p95", lambda cell: _number(cell.service_ms.p95)),
)
_KNEE_COLUMNS: tuple[_Column, ...] = (
    *_BATCH,
    ("sweep.queue_mean", lambda cell: _number(cell.queue_ms.mean)),
    ("sweep.queue_p95", lambda cell: _number(cell.queue_ms.p95)),
    ("sweep.ttft_mean", lambda cell: _number(cell.ttft_ms.mean)),
    ("sweep.ttft_p95", lambda cell: _number(cell.ttft_ms.p95)),
    ("sweep.tpot_mean", lambda cell: _number(cell.tpot_ms.mean)),
    ("sweep.itl_p95", lambda cell: _number(cell.itl_ms.p95)),
    ("sweep.e2el_mean", lambda cell: _number(cell.e2el_ms.mean)),
    ("sweep.e2el_p95", lambda cell: _number(cell.e2el_ms.p95)),
)


def _interval(metric: str) -> Callable[[SweepCell], str]:
    def show(cell: SweepCell) -> str:
        found = cell.intervals.get(metric)
        if found is None:
            return NOTHING
        ends = "" if found.low is None else f" [{_number(found.low)}, {_number(found.high)}]"
        return f"{_number(found.value)}{ends}"

    return show


_INTERVAL_COLUMNS: tuple[_Column, ...] = (
    *_BATCH,
    ("sweep.repeats", lambda cell: str(len(cell.repeats))),
    ("sweep.tokens_per_s", _interval("output_throughput")),
    ("sweep.e2el_mean", _interval("e2el_ms")),
    ("sweep.ttft_mean", _interval("ttft_ms")),
    ("sweep.tpot_mean", _interval("tpot_ms")),
    ("sweep.power", _interval("power")),
)
_BATCH_COLUMNS: tuple[_Column, ...] = (
    *_BATCH,
    ("sweep.slots", lambda cell: _percent(cell.slot_utilization)),
    ("sweep.mean_batch", lambda cell: _number(cell.mean_batch_size)),
    ("sweep.failed", lambda cell: str(cell.failed)),
    ("sweep.goodput", lambda cell: NOTHING if cell.goodput is None else f"{cell.goodput:.2f}"),
)


GPU_NUMBERS = ("utilization", "memory", "power", "energy", "per_token", "clock", "temperature", "throttled")


def gpu_numbers(use: GpuUse | None) -> list[str]:
    """What the GPU did, in the order of `GPU_NUMBERS`, without units."""
    if use is None:
        return [NOTHING] * len(GPU_NUMBERS)
    held = ", ".join(f"{why.replace('_', ' ')} {share:.0%}" for why, share in use.throttled.items())
    token = NOTHING if use.joules_per_token is None else f"{use.joules_per_token:.3g}"
    middle = map(_number, (use.memory_gib, use.power_w, use.energy_j))
    whole = (NOTHING if value is None else f"{value:.0f}" for value in (use.clock_mhz, use.temperature_c))
    return [_percent(use.utilization), *middle, token, *whole, held or NOTHING]


_GPU_UNITS = ("", " GiB", " W", " J", " J", " MHz", " °C", "")


def gpu_facts(use: GpuUse | None, say: Say) -> list[tuple[str, str]]:
    """What the GPU did, name by name with units; nothing where none was watched."""
    if use is None:
        return []
    shown = zip(GPU_NUMBERS, gpu_numbers(use), _GPU_UNITS, strict=True)
    return [(say(f"gpu.{name}"), value if value == NOTHING else f"{value}{unit}") for name, value, unit in shown]


def _gpu_column(place: int) -> Callable[[SweepCell], str]:
    return lambda cell: gpu_numbers(cell.gpu)[place]


_GPU_COLUMNS: tuple[_Column, ...] = (
    *_BATCH,
    *((f"gpu.column.{name}", _gpu_column(place)) for place, name in enumerate(GPU_NUMBERS)),
)


def _sweep_table(cells: Sequence[SweepCell], say: Say, columns: Sequence[_Column]) -> str:
    rows = [[number(cell) for _, number in columns] for cell in cells]
    return _table([say(key) for key, _ in columns], rows)


def _tradeoff_table(rows: Sequence[Tradeoff], say: Say) -> str:
    changes = ("throughput_change", "service_change", "e2el_change", "efficiency")
    header = [say(f"sweep.{name}") for name in ("policy", "batch", "wait", *changes)]
    return _table(header, [_tradeoff_row(row) for row in rows])


def _tradeoff_row(row: Tradeoff) -> list[str]:
    changes = (row.throughput_change, row.service_change, row.e2el_change)
    efficiency = NOTHING if row.efficiency is None else f"{row.efficiency:.2f}x"
    return [
        escaped(row.policy),
        str(row.max_batch_size),
        _wait(row),
        *(NOTHING if change is None else f"{change:+.0%}" for change in changes),
        efficiency,
    ]


# --- numbers and shapes ------------------------------------------------------------------------------------------


def _number(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value:.2f}" if value < 1000 else f"{value:.1f}"


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{_number(value)} ms"


def _percent(fraction: float | None) -> str:
    return NOTHING if fraction is None else f"{fraction:.0%}"


def _shape(shape: Sequence[int] | None) -> str:
    return NOTHING if shape is None else f"({', '.join(map(str, shape))})"


def _span(counts: Sequence[int]) -> str:
    if not counts:
        return NOTHING
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}–{high}"


def _ids(ids: Sequence[int]) -> str:
    return ", ".join(map(str, ids[:_LONGEST_LIST])) + (", …" if len(ids) > _LONGEST_LIST else "")


def _token(token: str | None, token_id: int) -> str:
    return str(token_id) if token is None else f"“{escaped(token)}”"


def _yes(answer: bool, say: Say) -> str:
    return say("answer.yes" if answer else "answer.no")


# --- Markdown ----------------------------------------------------------------------------------------------------


def _table(header: Sequence[str], rows: Rows) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


_SPECIAL = re.compile(r"[\\`*_\[\]<>|&~$#]")


def escaped(words: str) -> str:
    """Words that mean nothing to Markdown or HTML, on one line."""
    return _SPECIAL.sub(r"\\\g<0>", visible(words))
