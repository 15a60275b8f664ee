"""What all experiments share: the circumstances a record begins with, and the way from a measurement to a run on disk.

Knows no experiment: `perform` is given what to measure.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from knee.engine.engine import Engine
from knee.engine.types import SamplingParams
from knee.errors import RecordError, UserError
from knee.lab import records
from knee.lab.doctor import diagnose, read_state
from knee.lab.environment import read_hardware, read_software
from knee.lab.judgement.judge import judge
from knee.lab.messages import Lang, dtype_notes, text
from knee.lab.records import BatchPolicy, Hardware, Kind, ModelInfo, OnOff, Record, RequestRow, StepRow, Warning_
from knee.lab.runs import Run, RunFolder, find_run, lacks_trials, read_run
from knee.lab.spec import RunSpec
from knee.lab.sweep_records import TrialRow
from knee.lab.workload import Workload
from knee.llm import LLM

_GAP_S = 1.0


class Sink(Protocol):
    """Where what is measured goes, as soon as it is; a run folder, or a list in a test.

    `spec` says what is known beside the rows: of a run that is resumed, which trials it holds already.
    """

    spec: RunSpec

    def add_requests(self, rows: Sequence[RequestRow]) -> None:
        """Keep rows of requests."""

    def add_steps(self, rows: Sequence[StepRow]) -> None:
        """Keep rows of steps."""

    def add_trial(self, trial: TrialRow) -> None:
        """Keep what is known of a trial beside its rows; with it the trial counts."""

    def change(self, **parts: Any) -> None:
        """Replace parts of the spec."""

    def judge(self) -> None:
        """Write down what the rows say so far."""

    def keep(self, so_far: Outcome) -> None:
        """Keep what an experiment that is not judged found so far, in case that nothing follows."""


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


def workload_record(workload: Workload) -> records.Workload:
    """What a record says of a workload: prompts once each, as texts if all of them were given as texts."""
    used = workload.prompts[: workload.requests]
    texts = [prompt.text for prompt in used if prompt.text is not None]
    return records.Workload(
        requests=workload.requests,
        prompt_tokens=workload.prompt_tokens,
        max_new_tokens=workload.max_new_tokens,
        arrival=str(workload.arrival),
        seed=workload.seed,
        sha256=workload.sha256,
        prompts=texts if len(texts) == len(used) else [list(prompt.ids) for prompt in used],
        times=None if workload.times is None else list(workload.times),
        new_tokens=None if workload.new_tokens is None else list(workload.new_tokens),
    )


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
        workload=workload_record(workload),
        batch_policy=policy,
        kv_cache=on_off(kv_cache),
        metrics=None,
        options=dict(setting.options),
        notes=_notes(llm, setting),
    )


def _notes(llm: LLM, setting: Setting) -> list[str]:
    """What is to be known of any run with these weights and options."""
    waited = llm.device.overlaps and setting.options.get("overlap") == "off"
    dtype = dtype_notes(llm.device.dtype, llm.device.dtype_reason, "en")
    varies = [] if llm.device.batch_invariant else [text("en", "note.batch_invariant_off")]
    return [*dtype, *([text("en", "note.overlap_off")] if waited else []), *varies]


def _model(llm: LLM) -> ModelInfo:
    return ModelInfo(
        name=llm.checkpoint.name,
        source=_absolute(llm.checkpoint.source),
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


def _absolute(source: str) -> str:
    """A path that is the same from every folder; an alias or a hub id as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def perform(
    record: Record,
    setting: Setting,
    measure: Callable[[Sink], Outcome | None],
    opened: Callable[[Path], None],
    begin: RunSpec | None = None,
) -> Record:
    """Measure into a new run folder, of which `opened` is told; returns the final record.

    An experiment that is judged from its rows gives no outcome; `begin` is what is known of it from the start. With
    `setting.resume` the folder is that run's. Whatever ends the measurement early, the folder keeps what was measured
    until then, judged, and says how it ended.
    """
    spec = (begin or RunSpec(draft=record)).model_copy(update={"draft": record})
    keeper = _resumed(spec, setting) if setting.resume else _begun(spec, setting)
    with keeper.folder as folder:
        opened(folder.path)
        started, began = time.time() - time.monotonic(), time.monotonic()
        keeper.note(warnings=[*_crowded(record), *_surroundings(record.hardware)])
        try:
            if (found := measure(keeper)) is not None:
                keeper.keep(found)
        except KeyboardInterrupt:
            keeper.change(status="interrupted")  # what is advised depends on it
            raise
        finally:
            keeper.note(warnings=_clock_gap(time.time() - time.monotonic() - started))
            keeper.change(seconds=(keeper.spec.seconds or 0.0) + time.monotonic() - began)
            keeper.judge()
        folder.finish(folder.record)
    return folder.record


@dataclass(slots=True)
class _Keeper:
    """A run folder as a sink: what was found so far is on disk at any time."""

    folder: RunFolder
    spec: RunSpec
    requests: list[RequestRow] = field(default_factory=list)
    steps: list[StepRow] = field(default_factory=list)

    def add_requests(self, rows: Sequence[RequestRow]) -> None:
        self.folder.add_requests(rows)
        self.requests += rows

    def add_steps(self, rows: Sequence[StepRow]) -> None:
        self.folder.add_steps(rows)
        self.steps += rows

    def add_trial(self, trial: TrialRow) -> None:
        self.change(trials=[*self.spec.trials, trial])

    def change(self, **parts: Any) -> None:
        self.spec = self.spec.model_copy(update=parts)
        self.folder.save_spec(self.spec)

    def note(self, warnings: Sequence[Warning_]) -> None:
        """Add warnings about the circumstances; each is said once."""
        known = self.spec.draft.warnings
        new = [one for one in warnings if one not in known]
        if new:
            self.change(draft=self.spec.draft.model_copy(update={"warnings": [*known, *new]}))

    def judge(self) -> None:
        found = judge(self.spec, self.requests, self.steps)
        self.folder.save(found.model_copy(update={"status": "running"}))  # how it ended is the folder's to say

    def keep(self, so_far: Outcome) -> None:
        self.change(observed=so_far.metrics, observed_warnings=list(so_far.warnings), observed_notes=list(so_far.notes))
        self.judge()


def _begun(spec: RunSpec, setting: Setting) -> _Keeper:
    return _Keeper(RunFolder.create(setting.out, spec, setting.lang), spec)


# Options that change where a result goes or when the run ends, not what is measured.
_HARMLESS = ("resume", "out", "lang", "json", "name", "budget", "repeats")


def run_to_resume(setting: Setting) -> Run:
    """The run that `setting.resume` names. Raises `RecordError`, or `UserError` if it has nothing to go on from."""
    path = find_run(setting.out, setting.resume or "")
    run = read_run(path)
    if run.spec is None:
        raise UserError(f"{path} has no spec.json, an earlier knee wrote it: start a new run without --resume")
    if run.record.status == "done" and not lacks_trials(run):
        raise RecordError(f"{path} is done, there is nothing to resume: start a new run without --resume")
    return run


def _resumed(spec: RunSpec, setting: Setting) -> _Keeper:
    """The run to take up, with the rows of its whole trials; a trial that was cut off is measured again, whole.

    Raises `UserError` if the command or the circumstances are not those that the run began with.
    """
    path = run_to_resume(setting).path
    folder, before = RunFolder.resume(path, setting.lang)
    with folder.released_on_error():
        assert before.spec is not None
        _check_same(before.spec.draft, spec.draft, path)
        whole = {(trial.cell, trial.repeat, trial.void) for trial in before.spec.trials}
        draft = spec.draft.model_copy(
            update={
                "created_at": before.record.created_at,
                "name": before.record.name,
                "notes": before.spec.draft.notes,
                "warnings": before.spec.draft.warnings,
            }
        )
        keeper = _Keeper(
            folder,
            before.spec.model_copy(update={"draft": draft, "status": "running"}),
            [row for row in before.requests if (row.cell, row.repeat, row.void) in whole],
            [row for row in before.steps if (row.cell, row.repeat, row.void) in whole],
        )
        folder.replace_rows(keeper.requests, keeper.steps)
    return keeper


def _check_same(before: Record, now: Record, path: Path) -> None:
    names = [name for name in now.options if name not in _HARMLESS and before.options.get(name) != now.options[name]]
    for name, one, other in (
        ("the kind of experiment", before.kind, now.kind),
        ("the model's files", before.model.sha256, now.model.sha256),
        ("the workload", before.workload.sha256, now.workload.sha256),
        ("the processor", before.hardware.cpu, now.hardware.cpu),
        ("the cores", before.hardware.cores, now.hardware.cores),
        ("the device", before.model.device, now.model.device),
        ("the GPUs", _gpus_used(before), _gpus_used(now)),
        ("the instruction set", before.model.isa, now.model.isa),
        ("the threads", before.model.threads, now.model.threads),
        ("knee's version", before.software.knee, now.software.knee),
        ("the weights' type", before.model.dtype, now.model.dtype),
    ):
        names += [name] if one != other else []
    if names:
        raise UserError(
            f"{path} was begun otherwise ({', '.join(dict.fromkeys(names))} differ): resume it with "
            f"the same command on "
            "the same machine"
        )


def _gpus_used(record: Record) -> list[str]:
    """Those of the machine, where the model runs on one."""
    return [gpu.name for gpu in record.hardware.gpus] if record.model.device == "cuda" else []


def _crowded(record: Record) -> list[Warning_]:
    """More threads than cores."""
    threads, cores = record.model.threads or 0, record.hardware.cores
    return [warning("threads", threads=threads, cores=cores)] if threads > cores else []


def _surroundings(hardware: Hardware) -> list[Warning_]:
    """What about this machine, as it is right now, makes its numbers less trustworthy."""
    return [
        Warning_(code=found.code, message=found.message("en"), advice=found.advice("en"))
        for found in diagnose(hardware, read_state())
    ]


def _clock_gap(seconds: float) -> list[Warning_]:
    """The wall clock goes on while a machine sleeps, the monotonic one stands still."""
    return [warning("clock_gap", seconds=f"{seconds:.1f}")] if abs(seconds) > _GAP_S else []


def check_requests(engine: Engine, workload: Workload, params: SamplingParams) -> None:
    """Raise `RequestError` if any request could never be served. Runs nothing; the engine is of no use afterwards."""
    asked = replace(params, max_new_tokens=workload.max_new_tokens)
    for request in range(workload.requests):
        engine.submit(workload.prompt(request).ids, replace(asked, max_new_tokens=workload.tokens(request)))
