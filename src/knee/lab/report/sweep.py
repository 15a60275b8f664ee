"""A sweep's part of the page: the pictures, and why the numbers are what they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from knee.lab.messages import Lang, translated
from knee.lab.records import Record, RequestRow, StepRow
from knee.lab.report.blocks import Badge, Block, Claims, ClaimView, Folded, Panels, Section, Sentences, Table
from knee.lab.report.cells import highlights, name_of, numbered
from knee.lab.report.figures import boxes, ecdf, heatmap, shares, step_context, step_rows, timeline, tradeoff
from knee.lab.report.figures import effect as effect_figure
from knee.lab.report.figures.canvas import Picture
from knee.lab.report.numbers import effect, number, percent
from knee.lab.report.raw import percentiles
from knee.lab.sweep_records import CellExplanation, Claim, SweepMetrics

_TONES = {"supported": "good", "refuted": "bad", "cannot_tell": "open", "not_measured": "plain"}

_MOST_TIMELINES = 40  # of a sweep with hundreds of cells the first ones show what there is to see

Say = Callable[..., str]


def sections(
    record: Record,
    metrics: SweepMetrics,
    requests: Sequence[RequestRow],
    steps: Sequence[StepRow],
    say: Say,
    lang: Lang,
) -> list[Section]:
    """Between the answer and the environment, in the order in which a reader asks."""
    latencies = ("e2el", "ttft")
    drawn: list[tuple[str, list[Block | None]]] = [
        ("throughput", [tradeoff.draw(metrics, say)]),
        ("windows", [heatmap.draw(metrics, say)]),
        ("requests", timelines(metrics, requests, say)),
        ("steps", [step_rows.draw(metrics, say), step_context.draw(metrics, requests, steps, say)]),
        ("time", [shares.draw(metrics, say), _time_table(metrics, say)]),
        (
            "spread",
            [
                ecdf.draw(metrics, requests, say),
                boxes.draw(metrics, requests, say),
                percentiles(metrics.cells, latencies, say),
            ],
        ),
    ]
    found = [
        Section(name, say(f"report.section.{name}"), [block for block in blocks if block is not None])
        for name, blocks in drawn
    ]
    pictures = {block.name: block.label for section in found for block in section.blocks if isinstance(block, Picture)}
    return [*found, *why(record, metrics, pictures, say, lang)]


# --- requests over time ------------------------------------------------------------------------------------------


def timelines(metrics: SweepMetrics, requests: Sequence[RequestRow], say: Say) -> list[Block | None]:
    """The cells to look at first, and the others folded, all on the same axis of time."""
    cells = numbered(metrics.cells)
    trials = {number: rows for number in cells if (rows := first_trial(requests, number))}
    if not trials:
        return []
    end = timeline.last_moment(trials.values())
    first = highlights(metrics)
    titles = {number: name_of(cell) for number, cell in cells.items()}
    for number_, reasons in first.items():
        titles[number_] += f" · {', '.join(say(f'report.role.{reason}') for reason in reasons)}"
    drawn = set(list(trials)[:_MOST_TIMELINES])
    panels = {
        number: timeline.draw(rows, f"timeline-{number}", titles[number], end, say)
        for number, rows in trials.items()
        if number in first or number in drawn
    }
    top = [panels[number] for number in first if number in panels]
    rest = [panel for number, panel in panels.items() if number not in first]
    blocks: list[Block | None] = [Panels(top, timeline.keys(say), say("report.timeline.caption"))]
    if rest:
        blocks.append(Folded(say("report.timeline.rest", count=len(rest)), [Panels(rest)]))
    return blocks


def first_trial(requests: Sequence[RequestRow], cell: int) -> list[RequestRow]:
    """The requests of a cell's first trial that counts."""
    rows = [row for row in requests if row.cell == cell and not row.void]
    first = min((row.repeat for row in rows), default=0)
    return [row for row in rows if row.repeat == first]


# --- why ---------------------------------------------------------------------------------------------------------


def _time_table(metrics: SweepMetrics, say: Say) -> Folded | None:
    rows = [[name_of(cell), *_explained(cell.explanation, say)] for cell in metrics.cells if cell.explanation]
    if not rows:
        return None
    columns = ["decode_rows", "decode_ms", "floor", "near_floor", "bound", "empty_slots", "interference"]
    columns += ["floor_share", "over_floor", "decode", "prefill", "host", "held_back", "idle"]
    header = [say("report.cell"), *(say(f"report.explained.{name}") for name in columns)]
    return Folded(say("report.table.explained"), [Table(header, rows)])


def _explained(one: CellExplanation, say: Say) -> list[str]:
    shares_ = one.shares
    parts = (
        shares_.floor,
        shares_.over_floor,
        shares_.decode,
        shares_.prefill,
        shares_.host,
        shares_.held_back,
        shares_.idle,
    )
    return [
        number(one.decode_rows),
        number(one.decode_ms),
        number(one.floor_ms),
        percent(one.near_floor),
        say(f"report.bound.{one.bound}") if one.bound else "—",
        percent(one.empty_slots),
        number(one.interference_ms),
        *map(percent, parts),
    ]


def why(record: Record, metrics: SweepMetrics, pictures: dict[str, str], say: Say, lang: Lang) -> list[Section]:
    """The explanation in words, the claims, what recording cost and what was left out."""
    findings = [translated(lang, finding) for finding in metrics.findings]
    told = list(findings)
    if overhead := metrics.overhead:
        told.append(
            say(
                "report.overhead",
                us=number(overhead.us_per_step),
                share=f"{overhead.share * 100:.2f}",
                ms=number(overhead.step_ms),
            )
        )
    left_out = [translated(lang, line) for line in metrics.left_out]
    blocks: list[Block] = [Sentences(told)] if told else []
    if left_out:
        blocks.append(Sentences(left_out, say("report.left_out")))
    return [
        Section("why", say("report.section.why"), blocks),
        claims(record, pictures, say, lang),
    ]


def claims(record: Record, pictures: dict[str, str], say: Say, lang: Lang) -> Section:
    """What such logs usually conclude, tested here."""
    views: dict[bool, list[ClaimView]] = {True: [], False: []}  # whether this run can say
    for place, claim in enumerate(record.claims):
        views[claim.verdict != "not_measured"].append(_claim(claim, f"claim{place}", pictures, say, lang))
    blocks: list[Block] = [Claims(views[True], say("report.claims.note"))] if views[True] else []
    if views[False]:
        blocks.append(Folded(say("report.claims.untold", count=len(views[False])), [Claims(views[False])]))
    return Section("claims", say("report.section.claims"), blocks)


def _claim(claim: Claim, name: str, pictures: dict[str, str], say: Say, lang: Lang) -> ClaimView:
    shown = () if claim.verdict == "not_measured" else _PICTURES.get(claim.code, ())
    return ClaimView(
        translated(lang, claim.statement),
        Badge(_TONES[claim.verdict], say(f"report.claim.{claim.verdict}")),
        translated(lang, claim.sentence),
        "" if claim.effect is None else effect(claim.effect),
        None if claim.effect is None else effect_figure.draw(claim.effect, name),
        [(figure, pictures[figure]) for figure in shown if figure in pictures],
    )


# A claim's code -> the figures that show it.
_PICTURES: dict[str, tuple[str, ...]] = {
    "latency_is_service": ("tradeoff", "ecdf"),
    "batching_trades_latency": ("tradeoff",),
    "throughput_grows_with_batch": ("tradeoff", "step_rows"),
    "batch8_faster_than_4": ("tradeoff", "boxes"),
    "window_helps": ("heatmap",),
    "window_hurts": ("heatmap",),
    "prefill_costs_more": ("baseline",),
    "cold_is_steady": ("baseline",),
    "decode_independent_of_kv": ("step_context", "kvcache", "inspect"),
    "kv_cache_pays_from": ("kvcache",),
}
