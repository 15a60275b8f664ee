"""The end of the page: everything that the run was made on and of, and every number that it left."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence

from knee.lab.markdown import GPU_NUMBERS, gpu_numbers
from knee.lab.records import Record, Workload
from knee.lab.report.answer import known
from knee.lab.report.blocks import Block, Facts, Folded, Paste, Section, Sentences, Table
from knee.lab.report.cells import measured, name_of, names
from knee.lab.report.numbers import NOTHING, change, effect, interval, number, percent, whole
from knee.lab.sweep_records import COMPARED, StepTime, Summary, SweepCell, SweepMetrics, Tradeoff, TrialRow

_MOST_PROMPTS, _LONGEST_PROMPT = 64, 600
_PERCENTILES = ("mean", "p50", "p90", "p95", "p99")

Say = Callable[..., str]


def environment(record: Record, say: Say) -> Section:
    """Hardware, software, model, workload, options and command, as the record has them."""
    blocks: list[Block] = [
        Facts(_hardware(record, say), say("report.env.hardware")),
        Facts(_software(record, say), say("record.software")),
        Facts(_model(record, say), say("report.env.model")),
        Facts(_workload(record, say), say("record.workload")),
        *_prompts(record.workload, say),
        Facts([(name, _json(value)) for name, value in record.options.items()], say("report.env.options")),
        Paste(say("record.command"), [shlex.join(record.command)]),
    ]
    return Section("environment", say("report.section.environment"), [block for block in blocks if _holds(block)])


def _holds(block: Block) -> bool:
    return not isinstance(block, Facts) or bool(block.pairs)


def _hardware(record: Record, say: Say) -> list[tuple[str, str]]:
    hardware = record.hardware
    gpus = [say("record.gpu", name=gpu.name, memory=gpu.memory_gib, driver=gpu.driver) for gpu in hardware.gpus]
    return [
        (say("doctor.cpu"), hardware.cpu),
        (say("doctor.cores"), str(hardware.cores)),
        (say("doctor.isa"), " ".join(hardware.isa) or NOTHING),
        (say("doctor.memory"), f"{hardware.memory_gib:.1f} GiB"),
        (say("doctor.gpus"), "; ".join(gpus) or say("record.none")),
    ]


def _software(record: Record, say: Say) -> list[tuple[str, str]]:
    software = record.software
    dirty = "" if not software.git_dirty else f" {say('report.env.dirty')}"
    packages = ", ".join(f"{name} {version}" for name, version in software.packages.items())
    return [
        ("knee", software.knee),
        (say("report.env.commit"), f"{software.git_commit}{dirty}" if software.git_commit else NOTHING),
        ("Python", software.python),
        (say("report.env.platform"), software.platform),
        (say("report.env.packages"), packages or NOTHING),
    ]


def _model(record: Record, say: Say) -> list[tuple[str, str]]:
    model = record.model
    return [
        (say("log.model"), f"{model.name} @ {model.dtype}"),
        (say("report.env.source"), model.source),
        ("SHA-256", model.sha256),
        (say("report.env.architecture"), model.architecture),
        (say("report.env.parameters"), whole(model.parameters)),
        (say("report.env.device"), " · ".join(part for part in (model.device, model.isa) if part)),
        (say("report.env.threads"), whole(model.threads)),
        (say("log.load_model"), _ms(model.load_model_ms)),
        (say("log.load_tokenizer"), _ms(model.load_tokenizer_ms)),
        (say("log.kv_cache"), say(f"switch.{'both' if record.kind == 'kvcache' else record.kv_cache}")),
    ]


def _workload(record: Record, say: Say) -> list[tuple[str, str]]:
    workload = record.workload
    facts = [
        (say("report.env.requests"), whole(workload.requests)),
        (say("report.env.prompt_tokens"), _span(workload.prompt_tokens)),
        (say("report.env.new_tokens"), _span(workload.new_tokens or [workload.max_new_tokens])),
        (say("report.env.arrival"), workload.arrival),
        (say("report.env.seed"), str(workload.seed)),
        ("SHA-256", workload.sha256),
    ]
    if workload.times:
        facts.append((say("report.env.due"), ", ".join(f"{moment:.3f}" for moment in workload.times)))
    return facts


def _prompts(workload: Workload, say: Say) -> list[Block]:
    if not workload.prompts:
        return []
    shown = [prompt if isinstance(prompt, str) else _json(prompt) for prompt in workload.prompts[:_MOST_PROMPTS]]
    lines = [prompt if len(prompt) <= _LONGEST_PROMPT else prompt[:_LONGEST_PROMPT] + "…" for prompt in shown]
    left_out = len(workload.prompts) - len(shown)
    more = [say("record.more_prompts", count=left_out).strip()] if left_out else []
    return [Folded(say("report.env.prompts", count=len(workload.prompts)), [Sentences([*lines, *more], verbatim=True)])]


# --- a sweep's numbers -------------------------------------------------------------------------------------------


def tables(metrics: SweepMetrics, say: Say) -> Section:
    """Every table of a sweep, folded."""
    cells = metrics.cells
    blocks: list[Block] = [
        _folded(_totals(cells, say)),
        _folded(_intervals(cells, say)),
        *(_folded(percentiles(cells, [name], say)) for name in ("queue", "service", "tpot", "itl")),
        _folded(_repeats(metrics, say)),
    ]
    if any(cell.gpu for cell in cells):
        blocks.append(_folded(_gpu(cells, say)))
    if metrics.tradeoff:
        blocks.append(_folded(_tradeoff(metrics, say)))
    if metrics.step_times:
        blocks.append(_folded(_step_times(metrics.step_times, say)))
    machine = _machine(metrics, say)
    if machine:
        blocks.append(Folded(say("report.table.machine"), [Facts(machine)]))
    if metrics.trials:
        blocks.append(_folded(_trials(metrics, say)))
    return Section("tables", say("report.section.tables"), blocks)


def _folded(table: Table) -> Folded:
    return Folded(table.title, [Table(table.header, table.rows, table.texts, "", table.note)])


def _totals(cells: Sequence[SweepCell], say: Say) -> Table:
    names_ = ("total", "output_tokens", "repeats", "slots", "mean_batch", "failed", "window_idle", "tokens_hash")
    rows = [
        [
            name_of(cell),
            f"{cell.duration_s:.3f}",
            whole(cell.output_tokens),
            str(len(cell.repeats)),
            percent(cell.slot_utilization),
            number(cell.mean_batch_size),
            str(cell.failed),
            say("answer.yes" if cell.window_idle else "answer.no"),
            cell.tokens_sha256[:12],
        ]
        for cell in cells
    ]
    return Table(
        [say("report.cell"), *(say(f"report.column.{name}") for name in names_)], rows, title=say("report.table.totals")
    )


def _intervals(cells: Sequence[SweepCell], say: Say) -> Table:
    header = [say("report.cell"), *(say(f"report.metric.{name}") for name in COMPARED)]
    rows = [[name_of(cell), *(interval(measured(cell, name)) for name in COMPARED)] for cell in cells]
    return Table(header, rows, title=say("report.table.intervals"), note=say("report.table.intervals_note"))


def percentiles(cells: Sequence[SweepCell], latencies: Sequence[str], say: Say) -> Table:
    """Mean and percentiles of these latencies, in ms."""
    header = [f"{say(f'report.short.{name}')} {part}" for name in latencies for part in _PERCENTILES]
    rows = [
        [name_of(cell), *(number(value) for name in latencies for value in _summary(getattr(cell, f"{name}_ms")))]
        for cell in cells
    ]
    title = say("report.table.percentiles", names=", ".join(say(f"report.long.{name}") for name in latencies))
    missing = any(NOTHING in row for row in rows)
    return Table([say("report.cell"), *header], rows, title=title, note=say("report.table.missing") if missing else "")


def _summary(summary: Summary) -> list[float | None]:
    return [getattr(summary, part) for part in _PERCENTILES]


def _repeats(metrics: SweepMetrics, say: Say) -> Table:
    short = {name: say(f"report.metric.{name}") for name in COMPARED}
    rows = [
        [
            name_of(cell),
            str(repeat.repeat),
            f"{repeat.duration_s:.3f}",
            whole(repeat.output_tokens),
            *(number(repeat.values.get(name)) for name in COMPARED),
            ", ".join(short.get(name, name) for name in repeat.outlier) or NOTHING,
        ]
        for cell in metrics.cells
        for repeat in cell.repeats
    ]
    columns = ("repeat", "total", "output_tokens")
    header = [say("report.cell"), *(say(f"report.column.{name}") for name in columns), *short.values()]
    return Table(
        [*header, say("report.column.outlier")],
        rows,
        title=say("report.table.repeats"),
        note=say("report.table.repeats_note"),
    )


def _gpu(cells: Sequence[SweepCell], say: Say) -> Table:
    """What the GPU did; the energy of a token stands once more at the end, with its interval."""
    header = [say("report.cell"), *_gpu_header(say), say("gpu.per_token")]
    rows = [[name_of(cell), *gpu_numbers(cell.gpu), interval(cell.intervals.get("joules_per_token"))] for cell in cells]
    return Table(header, rows, title=say("gpu.title"), note=say("gpu.about"))


def _gpu_header(say: Say) -> list[str]:
    return [say(f"gpu.column.{name}") for name in GPU_NUMBERS]


def _tradeoff(metrics: SweepMetrics, say: Say) -> Table:
    effects = [name for name in COMPARED if any(name in row.effects for row in metrics.tradeoff)]
    header = [
        say(f"report.column.{name}") for name in ("throughput_change", "service_change", "e2el_change", "efficiency")
    ]
    rows = [[*_against(row, metrics), *(effect(row.effects.get(name)) for name in effects)] for row in metrics.tradeoff]
    return Table(
        [say("report.cell"), *header, *(say(f"report.name.{name}") for name in effects)],
        rows,
        title=say("report.table.tradeoff"),
        note=say("report.table.tradeoff_note"),
    )


def _against(row: Tradeoff, metrics: SweepMetrics) -> list[str]:
    changes = (row.throughput_change, row.service_change, row.e2el_change)
    efficiency = NOTHING if row.efficiency is None else f"{number(row.efficiency)}×"
    return [*names(metrics, [row.cell]), *map(change, changes), efficiency]


def _step_times(times: Sequence[StepTime], say: Say) -> Table:
    columns = ("rows", "steps", "context", "median", "quartiles", "floor", "memory", "arithmetic", "bound")
    rows = [
        [
            str(time.decode_rows),
            whole(time.steps),
            number(time.context),
            number(time.ms),
            f"{number(time.quartiles[0])}–{number(time.quartiles[1])}",
            number(time.floor_ms),
            number(time.memory_ms),
            number(time.arithmetic_ms),
            NOTHING if time.bound is None else say(f"report.bound.{time.bound}"),
        ]
        for time in times
    ]
    header = [say(f"report.column.{name}") for name in columns]
    return Table(header, rows, texts=0, title=say("report.table.step_times"))


def _machine(metrics: SweepMetrics, say: Say) -> list[tuple[str, str]]:
    """What the floors come from, and the request alone that the limits are scaled to."""
    facts: list[tuple[str, str]] = []
    if limits := metrics.limits:
        facts += [
            (say("doctor.read"), f"{number(limits.read_gb_s)} GB/s"),
            (say("report.machine.arithmetic", dtype=limits.dtype), f"{number(limits.gflop_s)} GFLOP/s"),
            (say("report.machine.how"), limits.how),
        ]
    if metrics.costs:
        facts += [(say(f"report.cost.{name}"), number(value)) for name, value in metrics.costs.model_dump().items()]
    if solo := metrics.solo:
        alone = {"ttft": solo.ttft_ms, "tpot": solo.tpot_ms, "e2el": solo.e2el_ms}
        times = {name: value for name, value in alone.items() if value is not None}
        shown = " · ".join(f"{say(f'report.limit.{name}')} {number(value)} ms" for name, value in known(times))
        facts.append((say("report.machine.solo", prompt=solo.prompt_tokens, tokens=solo.tokens), shown))
    return facts


def _trials(metrics: SweepMetrics, say: Say) -> Table:
    columns = ["repeat", "started", "seconds", "load_ms", "warm_up", "delay", "void", "pulse", "other_load"]
    columns += ["frequency", "temperature", "swap", "clock_gap", "trace", "errors"]
    labels = {trial.cell: names(metrics, [trial.cell])[0] for trial in metrics.trials}
    rows = [[labels[trial.cell], *_trial(trial, say)] for trial in metrics.trials]
    header = [say("report.cell"), *(say(f"report.column.{name}") for name in columns)]
    if any(trial.gpu for trial in metrics.trials):
        header += _gpu_header(say)
        rows = [[*row, *gpu_numbers(trial.gpu)] for row, trial in zip(rows, metrics.trials, strict=True)]
    return Table(header, rows, title=say("report.table.trials"), note=say("report.table.trials_note"))


def _trial(trial: TrialRow, say: Say) -> list[str]:
    warm = [number(step.ms) for step in trial.warm_up]
    pulse = NOTHING if trial.pulse_ms is None else " → ".join(map(number, trial.pulse_ms))
    return [
        str(trial.repeat),
        trial.started_at.replace("+00:00", "Z"),
        f"{trial.seconds:.2f}",
        number(trial.load_ms),
        NOTHING if not warm else warm[0] if len(warm) == 1 else f"{warm[0]} → {warm[-1]}",
        number(trial.client_delay_ms),
        say("answer.yes" if trial.void else "answer.no"),
        pulse,
        number(trial.other_load),
        whole(trial.frequency_mhz),
        number(trial.temperature_c),
        number(trial.swap_gib),
        number(trial.clock_gap_s),
        number(trial.trace_us),
        "; ".join(trial.errors) or NOTHING,
    ]


# --- words -------------------------------------------------------------------------------------------------------


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{number(value)} ms"


def _span(counts: Sequence[int]) -> str:
    if not counts:
        return NOTHING
    low, high = min(counts), max(counts)
    return whole(low) if low == high else f"{whole(low)}–{whole(high)}"
