"""Captured steps, without a GPU: graphs that are none run what they saw again, in the memory of that time.

So a graph that was kept although the memory it works in has changed gives wrong tokens, or is found with memory that
nobody holds any more.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton", reason="the kernels need Triton and torch (pip install knee[oracle])")

import torch

from knee.devices import CudaDevice, Span, Want
from knee.devices.base import FloatArray
from knee.devices.cuda import runner, steps
from knee.devices.cuda.tiling import Tiling
from tests.devices.interpreter import INTERPRET
from tests.devices.test_cuda import TOKENS, device

pytestmark = pytest.mark.skipif(
    not INTERPRET, reason="there is a GPU here: tests/devices/test_cuda_gpu.py has real graphs"
)


@pytest.fixture(autouse=True)
def large_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the interpreter it is the number of programs that takes time."""
    monkeypatch.setattr(runner, "choose_tiling", lambda *_: Tiling(few=True, rows=64, columns=64, warps=4, stages=2))


class Graphs:
    """Stands for torch.cuda.CUDAGraph, for the steps of one device."""

    def __init__(self, runs: CudaDevice, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runner, self.captured, self.replayed = runs._runner, 0, 0
        self.recording: list[Any] = []
        launch, graphs = self.runner.run, self

        class Graph:
            def capture_begin(self, **_: object) -> None:
                graphs.recording.append(self)

            def capture_end(self) -> None:
                graphs.recording.remove(self)
                graphs.captured += 1

            def replay(self) -> None:
                graphs.replayed += 1
                graphs.replay(self, launch)

        def run(step: Any) -> None:
            if not graphs.recording:
                launch(step)
                return
            [graph] = graphs.recording
            graph.step, graph.tokens = step, graphs.runner.tokens
            assert graphs.runner.scratch is not None
            graph.scratch = replace(graphs.runner.scratch)

        monkeypatch.setattr(self.runner, "run", run)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        runs.graphs = True

    def replay(self, graph: Any, launch: Any) -> None:
        """With what the graph works in, all of which must still be somebody's."""
        inner = self.runner
        now = inner.scratch
        assert now is not None
        held = [*now.buffers.values(), now.best, now.best_at, now.logits, now.stats, *now.partial, *now.outgrown]
        old = graph.scratch
        for used in (*old.buffers.values(), old.best, old.best_at, old.logits, old.stats, *old.partial):
            assert any(used is one for one in held), "memory that may have been given to somebody else"
        tokens, inner.scratch, inner.tokens = inner.tokens, old, graph.tokens
        launch(graph.step)
        inner.scratch, inner.tokens = now, tokens


def generated(runs: CudaDevice, logits_at: tuple[int, ...]) -> tuple[list[list[int]], list[FloatArray]]:
    """Tokens of four requests, and logits of some steps. Requests join, one passes the end of a split."""
    prompts = [(TOKENS * 5)[:253], TOKENS[:3], TOKENS[3:40], TOKENS[40:41]]
    joins, made, started = [0, 0, 2, 4], [[] for _ in prompts], [0] * len(prompts)  # type: ignore[var-annotated]
    tables, logits = [list(range(20)), [20, 21], [22, 23, 24, 25], [26, 27]], []
    for step in range(8):
        batch, whose = [], [request for request in range(4) if joins[request] <= step]
        want = Want.LOGITS if step in logits_at else Want.TOKEN
        for request in whose:
            new = [*prompts[request], *made[request]][started[request] :]
            batch.append(Span(new, started[request], tables[request], want))
            started[request] += len(new)
        for request, output in zip(whose, runs.execute(batch), strict=True):
            if output.logits is not None:
                logits.append(output.logits)
            made[request].append(int(output.logits.argmax()) if output.token is None else output.token)
    return made, logits


@pytest.mark.parametrize(("fewest_rows", "logits_at"), [(64, (3, 6)), (1024, (3, 6)), (1024, ())])
def test_graphs_change_no_token_as_memory_grows(
    fewest_rows: int, logits_at: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_FEWEST_ROWS", fewest_rows)
    runs = device("long")
    runs.allocate_kv(40, 16)
    expected, logits = generated(runs, logits_at)
    runs = device("long")
    runs.allocate_kv(40, 16)
    graphs = Graphs(runs, monkeypatch)
    for _ in range(2):  # the second time with graphs from before all growth, where they are still good
        tokens, found = generated(runs, logits_at)
        assert tokens == expected
        for one, other in zip(found, logits, strict=True):
            assert np.array_equal(one, other)
    assert graphs.captured > 4
    assert graphs.replayed == 16
    assert len({tuple(one) for one in expected}) == len(expected)


def test_without_a_cache_steps_are_captured_once_and_then_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = device("llama")
    graphs = Graphs(runs, monkeypatch)
    runs.allocate_kv(1, 16)
    captured = []
    for _ in range(2):
        for length in range(17, 40, 6):
            runs.execute([Span(TOKENS[:length], 0, (), Want.TOKEN)])
        captured.append(graphs.captured)
    assert captured[0] == captured[1] < 4


def test_of_many_graphs_the_one_longest_unused_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_MOST_GRAPHS", 2)
    runs = device("llama")
    graphs = Graphs(runs, monkeypatch)
    runs.allocate_kv(8, 16)

    def run(rows: int) -> int:
        before = graphs.captured
        runs.execute([Span(TOKENS[:rows], 0, [0, 1, 2, 3], Want.NOTHING)])
        assert len(runs._steps._captured) <= 2
        return graphs.captured - before

    assert [run(rows) for rows in (5, 20, 5, 40, 5, 20)] == [1, 1, 0, 1, 0, 1]
