"""A record alone is enough to do its work again, and what is not the same work any more is refused before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from knee.errors import UserError
from knee.lab import reproduce, sweep
from knee.lab.arrivals import Arrival
from knee.lab.experiment import Setting, perform, workload_record
from knee.lab.plan import CellSpec, SweepSpec
from knee.lab.records import Record
from knee.lab.reproduce import Again, choice_of, prepare, reproduction, sources_of, sweep_spec, workload_of
from knee.lab.runs import Run, read_run
from knee.lab.sweep_records import SweepMetrics
from knee.lab.worker import ModelChoice
from knee.lab.workload import Prompt, Workload
from knee.llm import LLM
from tests.lab.fake_llm import FakeTime, Undisturbed, make_llm, swept
from tests.lab.samples import BASELINE, KVCACHE, SWEEP, record, sweep_cell

PROMPTS = tuple(Prompt(tuple(range(length))) for length in (4, 7, 5))
TRACE = Arrival("trace", file="gone.jsonl", replayed=(0.0, 0.011, 0.5, 0.5))
WORK = Workload(PROMPTS, 4, 5, TRACE, seed=3, new_tokens=(5, 2, 1, 4))
OPTIONS: dict[str, Any] = {"model": "fake", "device": "auto", "dtype": "auto", "threads": None, "ignore_eos": True}


def of(workload: Workload) -> Record:
    return record("sweep", workload=workload_record(workload))


# --- from a record to work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "workload",
    [
        WORK,
        Workload(PROMPTS, 4, 5, Arrival.parse("poisson:12.5"), seed=9),
        Workload(PROMPTS, 2, 5, Arrival.parse("gamma:3:2.5")),
        Workload(PROMPTS, 7, 5, Arrival.parse("closed:2")),
        Workload((Prompt((1, 2), "ab"),), 3, 5),
    ],
    ids=lambda workload: str(workload.arrival),
)
def test_a_workload_is_the_same_to_the_token_and_the_moment(workload: Workload):
    made = of(workload)
    prompts = [Prompt((1, 2), one) if isinstance(one, str) else Prompt(one) for one in sources_of(made)]
    again = workload_of(made, prompts)
    assert (again.sha256, again.times) == (workload.sha256, workload.times)
    assert workload_record(again) == made.workload


def test_a_sweep_that_a_budget_cut_short_has_the_cells_and_the_repeats_that_it_had():
    repeat = sweep_cell(1).repeats[0]
    cells = [
        sweep_cell(1).model_copy(update={"repeats": [repeat] * 4}),
        sweep_cell(8).model_copy(update={"max_wait_ms": 0.0, "repeats": [repeat] * 3}),
        sweep_cell(2).model_copy(update={"policy": "continuous", "max_wait_ms": None}),
    ]
    options = {**OPTIONS, "budget": "60s", "repeats": 9, "batch_sizes": [1, 2, 4, 8], "max_batched_tokens": 64}
    made = record("sweep", metrics=SWEEP.model_copy(update={"cells": cells}), options=options, kv_cache="off")
    spec = sweep_spec(made, WORK)
    assert spec.cells == (CellSpec("dynamic", 1, 10.0), CellSpec("dynamic", 8, 0.0), CellSpec("continuous", 2))
    assert (spec.repeats, spec.token_budget, spec.kv_cache, spec.params.ignore_eos) == (4, 64, False, True)
    assert sweep_spec(made, WORK, repeats=2).repeats == 2
    assert sweep_spec(made, WORK).job(0, 0).overlap


def test_a_sweep_that_waited_for_each_step_does_so_again():
    spec = sweep_spec(record("sweep", options={**OPTIONS, "overlap": "off"}), WORK)
    assert not spec.overlap
    assert not spec.job(0, 0).overlap


def test_an_option_that_the_record_is_too_old_for_has_its_default():
    spec = sweep_spec(record("sweep", options={"model": "fake"}), WORK)
    assert (spec.block_size, spec.token_budget, spec.seed) == (16, 512, 3)
    made = record(options={"model": "fake"})
    assert choice_of(made) == ModelChoice("/models/distilgpt2", made.model.device, "auto", None)


def test_the_device_is_the_one_that_ran_and_not_the_best_of_today():
    made = record(options={"model": "fake", "device": "auto"})
    there = made.model_copy(update={"model": made.model.model_copy(update={"device": "reference"})})
    assert choice_of(there).device == "reference"


def test_an_alias_stays_an_alias_and_a_path_is_the_one_of_then():
    made = record(options={"model": "models/tiny"})
    assert choice_of(made).model == "/models/distilgpt2"  # where the relative path led to
    alias = made.model_copy(update={"model": made.model.model_copy(update={"source": "distilgpt2"})})
    assert choice_of(alias.model_copy(update={"options": {"model": "distilgpt2"}})).model == "distilgpt2"


def test_a_record_that_does_not_say_its_options_is_refused():
    with pytest.raises(UserError, match="does not say its options"):
        choice_of(record())


# --- again -------------------------------------------------------------------------------------------------------


@pytest.fixture
def time() -> FakeTime:
    return FakeTime()


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, time: FakeTime) -> LLM:
    """The model of every record here, on a machine that stands still."""
    made = make_llm(time.per_row)
    monkeypatch.setattr(ModelChoice, "load", lambda _choice: made)
    monkeypatch.setattr(sweep, "roofs", lambda *_: sweep.no_roofs)
    monkeypatch.setattr(sweep, "costs_of", lambda _llm: None)  # it has no weights
    return made


def measured(llm: LLM, time: FakeTime, spec: SweepSpec) -> Record:
    made, _ = swept(llm, spec, time)
    model = made.model.model_copy(update={"sha256": llm.checkpoint.sha256()})
    options = {**OPTIONS, "name": None, "budget": "5s", "repeats": 5, "resume": "some-run"}
    return made.model_copy(update={"model": model, "options": options})


def again(out: Path, llm: LLM, time: FakeTime, **more: Any) -> Again:
    setting = Setting("x-reproduced", out, options={"name": "x-reproduced", "lang": "en"})
    return Again(setting, runner=lambda _choice: Undisturbed(llm, time.clock), **more)


def run_again(made: Record, how: Again) -> Run:
    prepared, folders = prepare(made, how), list[Path]()
    perform(prepared.record, prepared.setting, prepared.measure, folders.append, prepared.begin)
    return read_run(folders[0])


def test_the_same_machine_gives_the_same_tokens_and_the_same_times(tmp_path: Path, llm: LLM, time: FakeTime):
    spec = SweepSpec(WORK, (CellSpec("dynamic", 4, 5.0), CellSpec("continuous", 2)), repeats=2)
    before = measured(llm, time, spec)
    after = run_again(before, again(tmp_path, llm, time)).record
    assert isinstance(after.metrics, SweepMetrics)
    assert [one.label for one in after.metrics.cells] == [str(one) for one in spec.cells]
    assert after.workload == before.workload
    assert (after.name, after.status, after.options["name"]) == ("x-reproduced", "done", "x-reproduced")
    assert (after.options["budget"], after.options["resume"], after.options["repeats"]) == (None, None, 2)
    found = reproduction(before, after)
    assert (found.tokens, found.same_model, found.failed) == ("same", True, False)
    assert all(change.effect.change == pytest.approx(0.0, abs=1e-9) for change in found.comparison.changes)


def test_another_model_is_refused_before_anything_runs(tmp_path: Path, llm: LLM, time: FakeTime):
    before = measured(llm, time, SweepSpec(WORK, (CellSpec("static", 2),), repeats=1))
    before = before.model_copy(update={"model": before.model.model_copy(update={"sha256": "f" * 64})})
    with pytest.raises(UserError, match=r"fake is not the model of the run any more .*ffffffffffff….*--anyway"):
        prepare(before, again(tmp_path, llm, time))
    after = run_again(before, again(tmp_path, llm, time, anyway=True)).record
    found = reproduction(before, after)
    assert (found.tokens, found.same_model) == ("same", False)
    assert [one.key for one in found.comparison.unequal] == ["model.sha256"]


def test_prompts_that_become_other_tokens_are_refused(tmp_path: Path, llm: LLM, time: FakeTime):
    before = measured(llm, time, SweepSpec(WORK, (CellSpec("static", 2),), repeats=1))
    before.workload.prompts = [[9, 9, 9], *before.workload.prompts[1:]]  # type: ignore[list-item]
    with pytest.raises(UserError, match="the workload would not be the run's"):
        prepare(before, again(tmp_path, llm, time))
    after = run_again(before, again(tmp_path, llm, time, anyway=True)).record
    found = reproduction(before, after)
    assert (found.tokens, found.failed) == ("differ", False)  # other work has other tokens


def test_nothing_measured_is_nothing_to_reproduce(tmp_path: Path, llm: LLM, time: FakeTime):
    empty = record("sweep", metrics=SWEEP.model_copy(update={"cells": []}), options=OPTIONS)
    for made in (record(done=False), empty):
        with pytest.raises(UserError, match="nothing that could be reproduced"):
            prepare(made, again(tmp_path, llm, time))


def test_repeats_are_for_sweeps(tmp_path: Path, llm: LLM, time: FakeTime):
    with pytest.raises(UserError, match="--repeats is for sweeps and this is a baseline"):
        prepare(record(options=OPTIONS), again(tmp_path, llm, time, repeats=3))


def test_kvcache_repeats_and_cuts_the_prompt_as_before(tmp_path: Path, llm: LLM, time: FakeTime):
    given = reproduce.kvcache.KvCacheSpec(Prompt((3, 1, 4)), (2, 8), max_new_tokens=3)
    made = record(
        "kvcache", workload=workload_record(given.together), options={**OPTIONS, "prompt": ["pie"]}, metrics=KVCACHE
    )
    made = made.model_copy(update={"model": made.model.model_copy(update={"sha256": llm.checkpoint.sha256()})})
    after = run_again(made, again(tmp_path, llm, time)).record
    assert after.workload == made.workload
    assert after.options["prompt"] == ["pie"]


# --- what came of it ---------------------------------------------------------------------------------------------


def test_other_tokens_of_the_same_model_are_a_failure_and_of_another_model_are_none():
    other = record(metrics=BASELINE.model_copy(update={"token_ids": [1]}))
    assert reproduction(record(), other).failed
    elsewhere = other.model_copy(update={"model": other.model.model_copy(update={"sha256": "1" * 64})})
    found = reproduction(record(), elsewhere)
    assert (found.tokens, found.failed) == ("differ", False)


def test_a_sweep_whose_repeats_disagree_has_not_reproduced_the_tokens():
    torn = record("sweep", metrics=SWEEP.model_copy(update={"same_tokens": False}))
    assert reproduction(record("sweep"), torn).tokens == "differ"
    assert reproduction(torn, torn).tokens == "same"


def test_medians_within_the_run_s_own_intervals_are_counted():
    runs = [[91.0, 92.0, 93.0, 94.0, 95.0], [93.0] * 5, [99.0] * 5]
    made = [record(metrics=BASELINE.model_copy(update={"prefill_runs_ms": one})) for one in runs]
    counted = [(found.within, found.intervals) for found in (reproduction(made[0], other) for other in made)]
    assert counted == [(1, 1), (1, 1), (0, 1)]
