"""A run as it would be judged now. Where the record was never finished, or is gone, this is how to get it."""

from __future__ import annotations

from dataclasses import replace

from knee.lab.judgement.judge import judge
from knee.lab.runs import Run


def rejudged(run: Run) -> Run:
    """The run with a record that says all that its rows say; one of an earlier knee, without a spec, as it is."""
    if run.spec is None:
        return run
    return replace(run, record=judge(run.spec, run.requests, run.steps))
