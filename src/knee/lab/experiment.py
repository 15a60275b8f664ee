"""What all experiments share: the circumstances a record begins with, and the way from a measurement to a run on disk.

Knows no experiment: `perform` is given what to measure.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from knee.engine.engine import Engine
from knee.engine.types import FinishReason, SamplingParams
from knee.errors import UserError
from knee.lab import records
from knee.lab.doctor import diagnose, read_state
from knee.lab.environment import read_hardware, read_software
from knee.lab.messages import Lang, dtype_notes, text
from knee.lab.records import BatchPolicy, Hardware, Kind, ModelInfo, OnOff, Record, RequestRow, StepRow, Warning_
from knee.lab.runs import RunFolder, find_run, read_run
from knee.lab.workload import Workload
from knee.llm import LLM

_GAP_S = 1.0


class Sink(Protocol):
    """Where what is measured goes, as soon as it is; a run folder, or a list in a test.

    `requests` and `steps` are the rows that it holds already: of a run that is resumed, all finished trials.
    """

    requests: list[RequestRow]
    steps: list[StepRow]

    def add_requests(self, rows: Sequence[RequestRow]) -> None:
        """Keep rows of requests."""

    def add_steps(self, rows: Sequence[StepRow]) -> None:
        """Keep rows of steps."""

    def keep(self, so_far: Outcome) -> None:
        """Keep what the rows say so far, in case that nothing follows."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an experiment found. `warnings` make the numbers less trustworthy, `notes` only explain them."""

    metrics: records.Metrics
    warnings: list[Warning_] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Setting:
    """What a command says about a run beside the experiment itself."""

    name: str
    out: Path
    lang: Lang = "en"
    command: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    resume: str | None = None  # a run that was cut off, to be taken up instead of a new one


def warning(code: str, **values: object) -> Warning_:
    """A warning in the words of the message `warning.<code>`."""
    return Warning_(code=code, message=text("en", f"warning.{code}", **values))


def on_off(kv_cache: bool) -> OnOff:
    """How a record writes it."""
    return "on" if kv_cache else "off"


def draft(kind: Kind, llm: LLM, workload: Workload, policy: BatchPolicy, kv_cache: bool, setting: Setting) -> Record:
    """The record of an experiment that is about to start."""
    return Record(
        kind=kind,
        name=setting.name,
        status="running",
        command=list(setting.command),
        hardware=read_hardware(),
        software=read_software(),
        model=_model(llm),
        workload=workload.as_record(),
        batch_policy=policy,
        kv_cache=on_off(kv_cache),
        metrics=None,
        options=dict(setting.options),
        notes=dtype_notes(llm.device.dtype, llm.device.dtype_reason, "en"),
    )


def _model(llm: LLM) -> ModelInfo:
    return ModelInfo(
        name=llm.checkpoint.name,
        source=llm.checkpoint.source,
        sha256=llm.checkpoint.sha256(),
        architecture=llm.program.architecture,
        parameters=llm.program.parameters,
        dtype=llm.device.dtype,
        device=llm.device.name,
        threads=llm.device.threads,
        isa=llm.device.isa,
        load_model_ms=llm.load_times.model_ms,
        load_tokenizer_ms=llm.load_times.tokenizer_ms,
    )


def perform(
    record: Record, setting: Setting, measure: Callable[[Sink], Outcome], opened: Callable[[Path], None]
) -> Record:
    """Measure into a new run folder, of which `opened` is told; returns the final record.

    With `setting.resume` the folder is that run's. Whatever ends the measurement early, the folder keeps what was
    measured until then, and says how it ended.
    """
    keeper = _resumed(record, setting) if setting.resume else _begun(record, setting)
    with keeper.folder as folder:
        opened(folder.path)
        started = time.time() - time.monotonic()
        circumstances = [*_crowded(record), *_surroundings(record.hardware)]
        keeper.draft = keeper.draft.model_copy(update={"warnings": circumstances})
        found = measure(keeper)
        slept = _clock_gap(time.time() - time.monotonic() - started)
        folder.finish(_filled(keeper.draft, replace(found, warnings=[*slept, *found.warnings])))
    return folder.record


@dataclass(slots=True)
class _Keeper:
    """A run folder as a sink: what was found so far is in its record at any time."""

    folder: RunFolder
    draft: Record
    requests: list[RequestRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)

    def add_requests(self, rows: Sequence[RequestRow]) -> None:
        self.folder.add_requests(rows)

    def add_steps(self, rows: Sequence[StepRow]) -> None:
        self.folder.add_steps(rows)

    def keep(self, so_far: Outcome) -> None:
        self.folder.save(_filled(self.draft, so_far))


def _begun(record: Record, setting: Setting) -> _Keeper:
    return _Keeper(RunFolder.create(setting.out, record, setting.lang), record)


# Options that change where a result goes, not what is measured.
_HARMLESS = ("resume", "out", "lang", "json", "name")


def _resumed(record: Record, setting: Setting) -> _Keeper:
    """The run to take up, with the rows of its finished trials; a trial that was cut off is measured again, whole.

    Raises `UserError` if the command is not the one that began the run.
    """
    path = find_run(setting.out, setting.resume or "")
    _check_same(read_run(path).record, record, path)
    folder, before = RunFolder.resume(path, setting.lang)
    finished = _finished_trials(before.requests, record.workload.requests)
    begun = {"created_at": before.record.created_at, "name": before.record.name}
    keeper = _Keeper(
        folder,
        record.model_copy(update=begun),
        [row for row in before.requests if (row.cell, row.repeat) in finished],
        [row for row in before.steps if (row.cell, row.repeat) in finished],
    )
    folder.replace_rows(keeper.requests, keeper.steps)
    return keeper


def _check_same(before: Record, now: Record, path: Path) -> None:
    names = [name for name in now.options if name not in _HARMLESS and before.options.get(name) != now.options[name]]
    for name, one, other in (
        ("the kind of experiment", before.kind, now.kind),
        ("the model's files", before.model.sha256, now.model.sha256),
        ("the workload", before.workload.sha256, now.workload.sha256),
    ):
        names += [name] if one != other else []
    if names:
        raise UserError(f"{path} was begun by another command ({', '.join(names)} differ): resume it with the same one")


def _finished_trials(rows: Sequence[RequestRow], requests: int) -> set[tuple[int, int]]:
    """(cell, repeat) of the trials in which every request came to an end of its own."""
    ended = Counter((row.cell, row.repeat) for row in rows if row.finish_reason != FinishReason.ABORTED.value)
    return {trial for trial, count in ended.items() if count == requests}


def _filled(draft: Record, found: Outcome) -> Record:
    warnings, notes = [*draft.warnings, *found.warnings], [*draft.notes, *found.notes]
    return draft.model_copy(update={"metrics": found.metrics, "warnings": warnings, "notes": notes})


def _crowded(record: Record) -> list[Warning_]:
    """More threads than cores."""
    threads, cores = record.model.threads or 0, record.hardware.cores
    return [warning("threads", threads=threads, cores=cores)] if threads > cores else []


def _surroundings(hardware: Hardware) -> list[Warning_]:
    """What about this machine, as it is right now, makes its numbers less trustworthy."""
    return [Warning_(code=found.code, message=found.message("en")) for found in diagnose(hardware, read_state())]


def _clock_gap(seconds: float) -> list[Warning_]:
    """The wall clock goes on while a machine sleeps, the monotonic one stands still."""
    return [warning("clock_gap", seconds=f"{seconds:.1f}")] if abs(seconds) > _GAP_S else []


def check_requests(engine: Engine, workload: Workload, params: SamplingParams) -> None:
    """Raise `RequestError` if any request could never be served. Runs nothing; the engine is of no use afterwards."""
    asked = replace(params, max_new_tokens=workload.max_new_tokens)
    for prompt in workload.prompts[: workload.requests]:
        engine.submit(prompt.ids, asked)
