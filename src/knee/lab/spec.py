"""`spec.json`: what a run was asked to do, on what, and what the machine was like in each trial.

With the raw lines of `requests.jsonl` and `steps.jsonl` it is all that the record and the report are made from: delete
the rest, and `judgement.judge` gives it again. The draft inside is the record without its metrics; it is written when
the run begins, and again after each trial. A trial that is not in `trials` was cut off and counts as never run.
"""

from __future__ import annotations

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt

from knee.lab.records import SCHEMA_VERSION, Metrics, Record, Status, Warning_
from knee.lab.schema import Model, Text
from knee.lab.sweep_records import CostModel, Limits, TrialRow


class CellSetting(Model):
    """A batch policy at one setting. `max_wait_ms` is null for a policy without a window."""

    policy: Text
    max_batch_size: PositiveInt
    max_wait_ms: NonNegativeFloat | None = None

    def __str__(self) -> str:
        window = "" if self.max_wait_ms is None else f" / {self.max_wait_ms:g} ms"
        return f"{self.policy} ({self.max_batch_size}{window})"


class RunSpec(Model):
    """A run before it is judged.

    `cells` to `trials` are a sweep's. `observed` are the metrics of an experiment that reads them off its requests
    (baseline, inspect, kvcache): there is nothing to judge them from. `status` is the run's; the draft's says
    nothing. `seconds` is what the whole run took.
    """

    schema_version: int = SCHEMA_VERSION
    status: Status = "running"
    draft: Record
    cells: list[CellSetting] = []
    repeats: NonNegativeInt = 0
    seed: int = 0
    slo: dict[str, float] | None = None
    limits: Limits | None = None
    costs: CostModel | None = None
    left_out: list[Text] = []
    trials: list[TrialRow] = []
    observed: Metrics | None = None
    observed_warnings: list[Warning_] = []
    observed_notes: list[Text] = []
    seconds: NonNegativeFloat | None = None
