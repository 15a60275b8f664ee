"""Limits on latencies, and what counts as within them."""

from __future__ import annotations

import pytest

from knee.errors import UserError
from knee.lab.records import RequestRow
from knee.lab.slo import Slo, within


def row(first: float, last: float, tokens: int = 3, reason: str = "length") -> RequestRow:
    """A request that was due at 0 s."""
    times = [first, *[last] * (tokens - 1)]
    return RequestRow(
        cell=0,
        repeat=0,
        request=0,
        scheduled_at=0.0,
        sent_at=0.0,
        prefill_start=0.0,
        first_token_at=first,
        finished_at=last,
        prompt_tokens=1,
        output_tokens=tokens,
        finish_reason=reason,
        token_ids_sha256="0" * 64,
        token_times=times,
    )


def test_a_request_meets_its_limits_only_if_it_meets_all_of_them() -> None:
    slo = Slo.parse("ttft:200, tpot:50,e2el:300")
    assert slo.met_by(row(0.2, 0.3))
    assert not slo.met_by(row(0.201, 0.3))
    assert not slo.met_by(row(0.2, 0.301))
    assert not slo.met_by(row(0.1, 0.3))  # 100 ms a token


def test_a_one_token_output_has_no_tpot_to_exceed() -> None:
    assert Slo.parse("tpot:1").met_by(row(0.5, 0.5, tokens=1))


def test_a_request_that_did_not_end_well_meets_nothing() -> None:
    assert not Slo.parse("e2el:1000").met_by(row(0.1, 0.2, reason="error"))


def test_the_share_within_the_limits_is_of_all_requests() -> None:
    rows = [row(0.1, 0.2), row(0.1, 0.2), row(0.9, 1.0), row(0.1, 0.2, reason="error")]
    assert within(rows, Slo.parse("ttft:500")) == 0.5
    assert within([], Slo.parse("ttft:500")) == 0.0


@pytest.mark.parametrize(
    "bad", ["", "ttft", "ttft:", "ttft:x", "ttft:0", "ttft:nan", "ttft:-1", "p99:3", "ttft:1,ttft:2"]
)
def test_limits_that_make_no_sense_are_refused(bad: str) -> None:
    with pytest.raises(UserError):
        Slo.parse(bad)
