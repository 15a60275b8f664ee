"""The top of the page: what to run, how sure that is, what it gives and costs; and what would spoil it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from knee.lab.judgement.knee_point import LEAST_PAIRS
from knee.lab.messages import Lang, translated
from knee.lab.records import BaselineMetrics, InspectMetrics, KvCacheMetrics, Record
from knee.lab.report.blocks import (
    Alarm,
    Badge,
    Block,
    Card,
    Cards,
    Caution,
    Cautions,
    Facts,
    Paste,
    Section,
    Sentences,
    Table,
)
from knee.lab.report.cells import names, numbered, recommended
from knee.lab.report.numbers import NOTHING, effect, interval, number, percent
from knee.lab.sweep_records import COMPARED, Against, Effect, Knee, Recommendation, SweepCell, SweepMetrics

_SURE = {"clear": "good", "tied": "plain", "cannot_tell": "open"}
_EFFECT = {"better": "good", "worse": "bad", "cannot_tell": "open"}
_TOKENS_DIFFER = frozenset({"tokens_differ", "generate_differs", "kv_cache_tokens_differ"})


def answer(record: Record, say: Callable[..., str], lang: Lang) -> Section:
    """What this run found, in one place."""
    blocks: list[Block]
    match record.metrics:
        case SweepMetrics() as metrics:
            blocks = _sweep(metrics, say, lang)
        case BaselineMetrics() as metrics:
            blocks = [Facts(_baseline(metrics, say))]
        case InspectMetrics() as metrics:
            blocks = [Facts(_inspect(metrics, say))]
        case KvCacheMetrics() as metrics:
            blocks = [Facts(_kvcache(metrics, say))]
        case _:
            blocks = [Sentences([say("record.no_metrics")])]
    return Section("answer", say("report.section.answer"), [*_alarm(record, say, lang), *blocks])


def warnings(record: Record, say: Callable[..., str], lang: Lang) -> Section:
    """Every warning with its advice; an empty section where there is none."""
    cells = record.metrics if isinstance(record.metrics, SweepMetrics) else None
    cautions = [
        Caution(
            warning.code,
            translated(lang, warning.message),
            translated(lang, warning.advice or ""),
            ", ".join(names(cells, warning.cells) if cells else map(str, warning.cells)),
        )
        for warning in record.warnings
    ]
    return Section("warnings", say("record.warnings"), [Cautions(cautions)] if cautions else [])


def tokens_agree(record: Record) -> bool:
    """Whether what must give the same tokens did."""
    match record.metrics:
        case SweepMetrics() | KvCacheMetrics() as metrics:
            same = metrics.same_tokens
        case InspectMetrics() as metrics:
            same = metrics.matches_generate and metrics.kv_cache_off.same_tokens
        case _:
            same = True
    return same and not any(warning.code in _TOKENS_DIFFER for warning in record.warnings)


def _alarm(record: Record, say: Callable[..., str], lang: Lang) -> list[Block]:
    if tokens_agree(record):
        return []
    why = [translated(lang, warning.message) for warning in record.warnings if warning.code in _TOKENS_DIFFER]
    return [Alarm(say("report.alarm.title"), " ".join([*why, say("report.alarm.words")]))]


# --- a sweep -----------------------------------------------------------------------------------------------------


def _sweep(metrics: SweepMetrics, say: Callable[..., str], lang: Lang) -> list[Block]:
    cards = [_card(one, metrics, say, lang) for one in recommended(metrics.recommendations)]
    if metrics.knee is not None:
        cards.append(_knee(metrics.knee, metrics, say, lang))
    if not cards:
        lines = [translated(lang, finding) for finding in metrics.findings]
        return [Sentences([say("report.answer.none"), *lines])]
    return [Cards(cards)]


def _card(one: Recommendation, metrics: SweepMetrics, say: Callable[..., str], lang: Lang) -> Card:
    cell = None if one.cell is None else numbered(metrics.cells).get(one.cell)
    choice, setting = _choice(cell, one.label, say)
    return Card(
        title=say(f"report.scenario.{one.scenario}"),
        verdict=Badge(_SURE[one.verdict], say(f"report.verdict.{one.verdict}")),
        choice=choice,
        setting=setting,
        facts=Facts(_facts(one, metrics, say)),
        sentence=translated(lang, one.sentence),
        limits=_limits(one, say, lang),
        effects=None if one.against is None else effects_table(one.against, say),
        commands=[Paste(name, text.splitlines()) for name, text in one.commands.items()],
        commands_title=say("report.commands"),
    )


def _choice(cell: SweepCell | None, label: str | None, say: Callable[..., str]) -> tuple[str, str]:
    """The policy, and its size and window in words."""
    if cell is None:
        return label or say("report.answer.no_choice"), ""
    size = say("report.batch_size", size=cell.max_batch_size)
    window = "" if cell.max_wait_ms is None else say("report.window", ms=f"{cell.max_wait_ms:g}")
    return cell.policy, " · ".join(part for part in (size, window) if part)


def _facts(one: Recommendation, metrics: SweepMetrics, say: Callable[..., str]) -> list[tuple[str, str]]:
    facts = [(say(f"report.objective.{one.objective}"), interval(one.value))] if one.value is not None else []
    if one.within is not None:
        facts.append((say("report.within"), percent(one.within)))
    if one.tied:
        facts.append((say("report.tied"), ", ".join(names(metrics, one.tied))))
    return facts


def _limits(one: Recommendation, say: Callable[..., str], lang: Lang) -> Facts | None:
    facts = []
    if one.limits:
        limits = " · ".join(f"{say(f'report.limit.{name}')} ≤ {number(ms)} ms" for name, ms in known(one.limits))
        facts.append((say("report.limits"), limits))
    if one.limits_how:
        facts.append((say("report.limits_how"), translated(lang, one.limits_how)))
    return Facts(facts) if facts else None


def known(limits: Mapping[str, float]) -> list[tuple[str, float]]:
    """Limits that there are words for, in the order in which they are met."""
    return [(name, limits[name]) for name in ("ttft", "tpot", "e2el") if name in limits]


def effects_table(against: Against, say: Callable[..., str]) -> Table:
    """What a cell gives and costs against another."""
    rows: list[list[str | Badge]] = [
        [say(f"report.name.{name}"), effect(against.effects[name]), effect_badge(against.effects[name], say)]
        for name in COMPARED
        if name in against.effects
    ]
    header = [say("report.against", label=against.label), say("report.change"), say("report.verdict")]
    return Table(header, rows)


def effect_badge(one: Effect, say: Callable[..., str]) -> Badge:
    """Better, worse, or cannot tell."""
    return Badge(_EFFECT[one.verdict], say(f"report.effect.{one.verdict}"))


def _knee(knee: Knee, metrics: SweepMetrics, say: Callable[..., str], lang: Lang) -> Card:
    choice, setting = _choice(numbered(metrics.cells).get(knee.cell), knee.label, say)
    facts = [(say("report.metric.power"), interval(knee.power))]
    if knee.tied:
        facts.append((say("report.tied"), ", ".join(names(metrics, knee.tied))))
    facts.append((say("report.knee.found"), ", ".join(map(str, knee.found_batches)) or NOTHING))
    facts.append((say("report.knee.roofline"), number(knee.roofline_batch)))
    unsure = knee.power.n < LEAST_PAIRS or len(metrics.cells) < 2
    verdict = "cannot_tell" if unsure else "tied" if knee.tied else "clear"
    return Card(
        title=say("report.knee"),
        verdict=Badge(_SURE[verdict], say(f"report.verdict.{verdict}")),
        choice=choice,
        setting=setting,
        facts=Facts(facts),
        sentence=translated(lang, knee.sentence),
    )


# --- the other experiments ---------------------------------------------------------------------------------------


def _baseline(metrics: BaselineMetrics, say: Callable[..., str]) -> list[tuple[str, str]]:
    return [
        (say("report.baseline.prefill_cold"), _ms(metrics.prefill_cold_ms)),
        (say("report.baseline.prefill_warm"), _ms(metrics.prefill_ms)),
        (say("report.baseline.per_token"), _ms(metrics.prefill_ms_per_token)),
        (say("report.baseline.decode_step"), _ms(metrics.decode_ms_per_step)),
        (say("baseline.throughput"), f"{number(metrics.output_tokens_per_s)} tokens/s"),
    ]


def _inspect(metrics: InspectMetrics, say: Callable[..., str]) -> list[tuple[str, str]]:
    off = metrics.kv_cache_off
    steps = [step.ms for step in metrics.steps]
    steps_off = [step.ms for step in off.steps]
    same = metrics.matches_generate and off.same_tokens
    return [
        (say("report.inspect.prefill"), _ms(metrics.prefill.ms)),
        (say("report.inspect.step_on"), _ms(_mean(steps))),
        (say("report.inspect.step_off"), _ms(_mean(steps_off))),
        (say("report.inspect.same"), say("answer.yes" if same else "answer.no")),
    ]


def _kvcache(metrics: KvCacheMetrics, say: Callable[..., str]) -> list[tuple[str, str]]:
    pays = metrics.pays_from_tokens
    longest = max((cell.prompt_length for cell in metrics.cells), default=0)
    totals = {cell.kv_cache: cell.total_ms for cell in metrics.cells if cell.prompt_length == longest}
    facts = [
        (
            say("report.kvcache.pays"),
            say("report.kvcache.never") if pays is None else say("report.kvcache.from", tokens=pays),
        ),
        (say("report.kvcache.each"), f"{number(metrics.kv_bytes_per_token / 1024)} KiB"),
    ]
    if totals.get("on") and totals.get("off"):
        facts.append(
            (
                say("report.kvcache.ratio", tokens=longest),
                say("report.kvcache.times_as_long", ratio=number(totals["off"] / totals["on"])),
            )
        )
    return facts


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _ms(value: float | None) -> str:
    return NOTHING if value is None else f"{number(value)} ms"
