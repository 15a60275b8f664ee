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
from knee.devices.base import UNKNOWN, FloatArray
from knee.devices.cuda import runner, steps
from knee.devices.cuda.tiling import Tiling
from knee.errors import OutOfMemory
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
        self.runs, self.runner, self.captured, self.replayed = runs, runs._runner, 0, 0
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
            assert graphs.runner.scratch is not None
            graph.step, graph.tokens, graph.scratch = step, graphs.runner.tokens, replace(graphs.runner.scratch)

        monkeypatch.setattr(self.runner, "run", run)
        monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
        runs.graphs = True

    def replay(self, graph: Any, launch: Any) -> None:
        """With what the graph works in, all of which must still be held for it."""
        inner, old = self.runner, graph.scratch
        [work] = [work for steps in self.steps() for work in steps._captured.values() if work.graph is graph]
        held, used = ([one.tokens, *tensors(one.scratch)] for one in (work, graph))
        assert all(one is other for one, other in zip(held, used, strict=True)), "memory that somebody else may have"
        assert graph.step.tables is work.room.tables
        assert graph.step.ints["tokens"].data_ptr() == work.room.ints.data_ptr()
        now, tokens, inner.scratch, inner.tokens = inner.scratch, inner.tokens, old, graph.tokens
        launch(graph.step)
        inner.scratch, inner.tokens = now, tokens

    def steps(self) -> list[steps.Steps]:
        """Of the device: with a KV cache, and without."""
        return [one for one in (self.runs._steps, self.runs._uncached) if one is not None]


def tensors(scratch: runner.Scratch) -> list[torch.Tensor]:
    """All of its memory."""
    vectors = (scratch.stats, scratch.slots, scratch.best, scratch.best_at, scratch.scaled, scratch.normed)
    products = [] if scratch.products is None else [scratch.products]
    return [*scratch.buffers.values(), *vectors, scratch.logits, *scratch.partial, *products]


def generated(runs: CudaDevice, logits_at: tuple[int, ...]) -> tuple[list[list[int]], list[FloatArray]]:
    """Tokens of four requests, and logits of some steps. Requests join, one passes the end of a split.

    A token that the step before has chosen is not told but taken where that step has left it.
    """
    prompts = [(TOKENS * 5)[:253], TOKENS[:3], TOKENS[3:40], TOKENS[40:41]]
    joins, made, started = [0, 0, 2, 4], [[] for _ in prompts], [0] * len(prompts)  # type: ignore[var-annotated]
    tables, logits = [list(range(20)), [20, 21], [22, 23, 24, 25], [26, 27]], []
    chosen: list[int] = []  # by the device, in the step before
    for step in range(8):
        batch, whose = [], [request for request in range(4) if joins[request] <= step]
        want = Want.LOGITS if step in logits_at else Want.TOKEN
        for request in whose:
            new = [*prompts[request], *made[request]][started[request] :]
            source = chosen.index(request) if request in chosen else None
            first, started[request] = started[request], started[request] + len(new)
            blocks = tables[request][: -(-started[request] // 16)]
            batch.append(Span(new if source is None else [UNKNOWN], first, blocks, want, source))
        for request, output in zip(whose, runs.execute(batch), strict=True):
            if output.logits is not None:
                logits.append(output.logits)
            made[request].append(int(output.logits.argmax()) if output.token is None else output.token)
        chosen = whose if want is Want.TOKEN else []
    return made, logits


@pytest.mark.parametrize(
    ("rows", "tokens_kept", "blocks", "logits_at", "rooms"),
    [(64, 1, 1, (), 2), (64, 8192, 1, (1, 6), 3), (1024, 8192, 16, (), 3)],
)
def test_graphs_change_no_token_as_memory_grows_and_none_is_captured_twice(
    rows: int, tokens_kept: int, blocks: int, logits_at: tuple[int, ...], rooms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "_FEWEST_ROWS", rows)
    monkeypatch.setattr(runner, "_FEWEST_TOKENS", tokens_kept)
    monkeypatch.setattr(steps, "_ENOUGH", steps._Sizes(ints=64, spans=1, outputs=1, blocks=blocks))
    runs = device("long")
    runs.allocate_kv(40, 16)
    expected, logits = generated(runs, logits_at)
    runs = device("long")
    runs.allocate_kv(40, 16)
    graphs, captured = Graphs(runs, monkeypatch), []
    for _ in range(2):  # the second time with the graphs of the first, whatever has grown since
        tokens, found = generated(runs, logits_at)
        assert tokens == expected
        for one, other in zip(found, logits, strict=True):
            assert np.array_equal(one, other)
        captured.append(graphs.captured)
    assert captured[0] > 4
    held = [work for one in graphs.steps() for work in one._captured.values()]
    assert len({id(work.room) for work in held}) == rooms
    assert len({id(work.scratch) for work in held}) < 6, "memory was made anew that was large enough"
    if tokens_kept > 1:  # their place is the one that all graphs share
        assert captured[0] == captured[1], "what was rehearsed was captured again"
    assert graphs.replayed == 16
    assert len({tuple(one) for one in expected}) == len(expected)


def test_a_graph_is_not_replayed_for_more_blocks_than_its_tables_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "_ENOUGH", steps._ENOUGH._replace(blocks=1))
    runs = device("llama")
    runs.allocate_kv(3, 2)
    graphs = Graphs(runs, monkeypatch)
    tokens, captured = [], []
    for _ in range(2):
        for start in range(5):
            span = Span(TOKENS[start : start + 1], start, range(start // 2 + 1), Want.TOKEN)
            tokens.append(runs.execute([span])[0].token)
        captured.append(graphs.captured)
    assert captured == [3, 3]  # for tables of one block, two and four
    assert tokens[:5] == tokens[5:]
    [whole] = runs.execute([Span(TOKENS[:5], 0, range(3), Want.TOKEN)])
    assert whole.token == tokens[4]


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


def short_of(memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for the first so many tensors; from then on there is none."""
    there, empty = iter(range(memory)), torch.empty

    def make(*arguments: Any, **options: Any) -> torch.Tensor:
        if next(there, None) is None:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return empty(*arguments, **options)

    monkeypatch.setattr(torch, "empty", make)


def test_memory_that_runs_out_half_way_leaves_nothing_half_made(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = device("llama")
    runs.allocate_kv(40, 16)
    runs.execute([Span(TOKENS[:5], 0, [0], Want.TOKEN)])
    batch = [Span(TOKENS[i : i + 3], 0, [i], Want.TOKEN) for i in range(4)]
    for memory in (0, 1):  # room for the greatest logits, none for where they are
        with monkeypatch.context() as patch:
            short_of(memory, patch)
            with pytest.raises(OutOfMemory, match="what a step works in"):
                runs.execute(batch)
    scratch = runs._runner.scratch
    assert scratch is not None
    assert scratch.best.numel() == scratch.best_at.numel()
    together = [output.token for output in runs.execute(batch)]
    assert together == [runs.execute([span])[0].token for span in batch]


@pytest.mark.parametrize("cached", [True, False])
def test_graphs_make_room_for_a_step_that_would_not_fit_beside_them(
    cached: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of steps with a KV cache, and of those without, whatever the step is; which is then started once more."""
    runs = device("llama")
    graphs = Graphs(runs, monkeypatch)
    runs.allocate_kv(40, 16)
    [output] = runs.execute([Span(TOKENS[:5], 0, [0], Want.TOKEN)])
    runs.execute([Span(TOKENS[:5], 0, (), Want.TOKEN)])
    reserve, held = runs._runner.reserve, []

    def full(dims: Any) -> None:
        held.append(sum(len(one._captured) for one in graphs.steps()))
        if held == [2]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        reserve(dims)

    monkeypatch.setattr(runs._runner, "reserve", full)
    if cached:  # the token of the step before, too, is where it was
        found = runs.execute([Span([UNKNOWN], 5, [0], Want.TOKEN, source=0), Span(TOKENS[:20], 0, [1, 2], Want.TOKEN)])
    else:
        found = runs.execute([Span(TOKENS[:20], 0, (), Want.TOKEN)])
    assert held == [2, 0]
    runs.graphs = False
    assert output.token is not None
    again = runs.execute([Span(TOKENS[:20], 0, [1, 2], Want.TOKEN), Span([output.token], 5, [0], Want.TOKEN)])
    assert [one.token for one in found] == [one.token for one in again][::-1][-len(found) :]


def test_a_capture_that_fails_is_told_once_and_changes_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = device("llama")
    tried = []

    class Broken:
        def capture_begin(self, **_: object) -> None:
            tried.append(self)
            raise RuntimeError("no graph today\nsecond line")

    runs.allocate_kv(4, 16)
    batch = [Span(TOKENS[i : i + 1], 0, [i], Want.TOKEN) for i in range(4)]
    expected = [output.token for output in runs.execute(batch)]
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Broken)
    runs.graphs = True
    for _ in range(2):
        assert [output.token for output in runs.execute(batch)] == expected
    assert len(tried) == 1
    [warning] = runs.warnings
    assert "a step of 4 rows could not be captured as a CUDA graph (no graph today)" in warning
    assert not runs.graphs


def test_decode_captures_the_sizes_that_its_batch_comes_to_as_requests_end(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = device("llama")
    graphs = Graphs(runs, monkeypatch)
    runs.allocate_kv(6, 16)
    decode = [Span(TOKENS[i : i + 1], 0, [i], Want.TOKEN) for i in range(5)]

    def captures(batch: list[Span]) -> int:
        before = graphs.captured
        runs.execute(batch)
        return graphs.captured - before

    assert captures([*decode[:2], Span(TOKENS[:3], 0, [5], Want.TOKEN)]) == 1  # with a prefill: of no other size
    assert captures(decode) == 4  # of 8, 4, 2 and 1
    assert [captures(decode[:count]) for count in (4, 3, 2, 1)] == [0] * 4


def test_a_step_that_is_started_once_more_finds_the_tokens_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = device("llama")
    runs.allocate_kv(4, 16)
    runs.execute([Span(TOKENS[:4], 0, [0], Want.NOTHING)])
    # Decode comes first on the device, so their tokens lie there the other way round.
    made = runs.execute([Span(TOKENS[:3], 0, [1], Want.TOKEN), Span(TOKENS[4:5], 4, [0], Want.TOKEN)])
    run, tries = runs._runner.run, []

    def full(step: Any) -> None:
        tries.append(step)
        if len(tries) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        run(step)

    monkeypatch.setattr(runs._runner, "run", full)
    places = [(3, [1], 0), (5, [0], 1)]
    found = runs.execute([Span([UNKNOWN], start, blocks, Want.TOKEN, source) for start, blocks, source in places])
    told = [Span([made[source].token or 0], start, blocks, Want.TOKEN) for start, blocks, source in places]
    assert found == runs.execute(told)
    assert len({output.token for output in made}) == 2
    assert len(tries) == 3


def test_no_room_for_the_first_steps_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = device("llama")

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(runs._steps, "use", full)
    with pytest.raises(OutOfMemory, match="what a step works in"):
        runs.allocate_kv(4, 16)


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
