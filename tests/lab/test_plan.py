"""What a sweep runs is decided beforehand: only the policy changes between cells, and chance alone orders them."""

from __future__ import annotations

import pickle

import pytest

from knee.errors import UserError
from knee.lab.plan import CellSpec, SweepSpec, make_cells
from knee.lab.workload import Prompt, Workload

STATIC = tuple(CellSpec("static", size) for size in (1, 4, 8))


def spec(*cells: CellSpec, **more: int) -> SweepSpec:
    return SweepSpec(Workload((Prompt((1, 2)),), 4, 3), cells or STATIC, **more)


# --- which cells -------------------------------------------------------------------------------------------------


def test_only_dynamic_has_windows_and_single_has_one_cell():
    cells = make_cells(["single", "static", "dynamic", "continuous"], [4, 8], [0.0, 10.0])
    assert [str(cell) for cell in cells] == [
        "single (1)",
        "static (4)",
        "static (8)",
        "dynamic (4 / 0 ms)",
        "dynamic (4 / 10 ms)",
        "dynamic (8 / 0 ms)",
        "dynamic (8 / 10 ms)",
        "continuous (4)",
        "continuous (8)",
    ]


def test_dynamic_without_a_window_asked_for_does_not_wait():
    assert make_cells(["dynamic"], [4], None) == (CellSpec("dynamic", 4, 0.0),)


@pytest.mark.parametrize(
    ("policies", "sizes", "waits", "message"),
    [
        ([], [1], None, "no policy"),
        (["static"], [], None, "no batch size"),
        (["dynamic"], [1], [], "no wait window"),
        (["static"], [4, 4], None, "batch size is given twice"),
        (["static"], [4], [10.0], "only policy dynamic has a wait window"),
    ],
)
def test_lists_that_make_no_sense_are_refused(policies, sizes, waits, message):
    with pytest.raises(UserError, match=message):
        make_cells(policies, sizes, waits)


@pytest.mark.parametrize(
    "cell",
    [
        CellSpec("static", 0),
        CellSpec("dynamic", 4, -1.0),
        CellSpec("dynamic", 4, float("nan")),
        CellSpec("dynamic", 4, float("inf")),
        CellSpec("magic", 4),
        CellSpec("static", 1000),
    ],
)
def test_bad_cells_are_refused_before_work(cell: CellSpec):
    with pytest.raises(UserError):
        spec(cell)


def test_no_repeats_are_refused():
    with pytest.raises(UserError, match="repeats is 0"):
        spec(repeats=0)


def test_the_largest_cell_is_the_one_with_the_largest_batch():
    assert spec(*make_cells(["single", "continuous"], [2, 16, 4], None)).largest == CellSpec("continuous", 16)


# --- the order of trials -----------------------------------------------------------------------------------------


def test_repeats_run_round_by_round_in_an_order_that_the_seed_decides():
    trials = spec(repeats=5).trials()
    rounds = [trials[i : i + 3] for i in range(0, 15, 3)]
    assert all({cell for cell, _ in one} == {0, 1, 2} for one in rounds)
    assert [{repeat for _, repeat in one} for one in rounds] == [{0}, {1}, {2}, {3}, {4}]
    assert len({tuple(cell for cell, _ in one) for one in rounds}) > 1
    assert spec(repeats=5).trials() == trials
    assert spec(repeats=5, seed=1).trials() != trials


def test_more_repeats_go_on_where_fewer_end():
    assert spec(repeats=5).trials()[:9] == spec(repeats=3).trials()


def test_jobs_differ_in_nothing_but_their_cell_and_repeat():
    given = spec(repeats=2)
    jobs = [given.job(cell, repeat) for cell, repeat in given.trials()]
    assert sorted((job.number, job.repeat) for job in jobs) == [(c, r) for c in range(3) for r in range(2)]
    assert all(job.cell == STATIC[job.number] for job in jobs)
    assert len({(job.workload.sha256, job.params, job.kv_cache, job.block_size, job.token_budget) for job in jobs}) == 1


def test_a_job_can_go_to_another_process():
    job = spec().job(1, 3)
    job.workload.times  # noqa: B018  what was worked out already goes along
    assert pickle.loads(pickle.dumps(job)) == job
