"""`knee claims`: a verdict, a statement and its numbers, in both languages; old runs are asked, too."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.cells import cell_len

from knee.cli import claims
from knee.errors import RecordError
from knee.lab.records import Record
from knee.lab.runs import RunFolder
from knee.lab.spec import RunSpec
from knee.lab.sweep_records import Claim
from tests.lab.samples import METRICS, record

NASTY = "a\x1b[31m\u202eb [bold]d"
WORDS = {"en": ("supported", "refuted", "cannot tell", "not measured"), "zh": ("成立", "不成立", "无法判断", "未测量")}
ALL = [
    Claim(code=verdict, statement=f"Statement {verdict}.", verdict=verdict, effect=None, sentence="Because of 7 %.")
    for verdict in ("supported", "refuted", "cannot_tell", "not_measured")
]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(claims.command, [str(argument) for argument in arguments], catch_exceptions=False)


def keep(out: Path, made: Record) -> Path:
    """A run without spec.json, as earlier versions wrote it: the record is all there is."""
    with RunFolder.create(out, RunSpec(draft=made)) as run:
        run.finish(made)
    (run.path / "spec.json").unlink()
    return run.path


@pytest.mark.parametrize("lang", WORDS)
def test_every_verdict_has_its_word(tmp_path: Path, lang: str) -> None:
    page = call(keep(tmp_path, record("sweep", claims=ALL)), "--lang", lang).stdout
    *measured, rest = zip(ALL, WORDS[lang], strict=True)
    for claim, word in measured:
        assert re.search(rf"^ *{word} +{claim.statement}\n +{claim.sentence}$", page, re.MULTILINE)
    claim, word = rest  # what another command measures stands below, shorter
    assert re.search(rf"^ *{word}\n +{claim.statement} {claim.sentence}$", page, re.MULTILINE)


def test_json_is_the_claims_and_nothing_else(tmp_path: Path) -> None:
    path = keep(tmp_path, record("sweep", claims=ALL))
    assert [Claim.model_validate(one) for one in json.loads(call(path, "--json").stdout)] == ALL


@pytest.mark.parametrize("kind", METRICS)
def test_a_record_without_claims_is_asked_now(tmp_path: Path, kind: str) -> None:
    keep(tmp_path, record(kind))
    codes = {one["code"] for one in json.loads(call("latest", "--out", tmp_path, "--json").stdout)}
    assert {"prefill_costs_more", "batching_trades_latency", "gpu_gains_more"} <= codes


def test_a_run_with_its_spec_is_judged_again(tmp_path: Path) -> None:
    made = record("baseline", done=False)
    with RunFolder.create(tmp_path, RunSpec(draft=made, observed=METRICS["baseline"])) as run:
        run.finish(record("baseline", claims=ALL))
    found = json.loads(call(run.path, "--json").stdout)
    assert not {one["code"] for one in found} & {claim.code for claim in ALL}
    assert "cold_is_steady" in {one["code"] for one in found}


@pytest.mark.parametrize("lang", WORDS)
def test_lines_are_as_narrow_as_the_page(tmp_path: Path, lang: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    page = call(keep(tmp_path, record("baseline")), "--lang", lang).stdout
    assert max(map(cell_len, page.splitlines())) <= 60
    assert not re.search(r"\w…", page)


def test_a_run_without_metrics_says_so(tmp_path: Path) -> None:
    made = record("sweep", done=False, status="interrupted")
    with RunFolder.create(tmp_path, RunSpec(draft=made)) as run:
        run.save(made)
    (run.path / "spec.json").unlink()
    assert "nothing to test a claim on" in call(run.path).stdout
    assert json.loads(call(run.path, "--json").stdout) == []


def test_a_run_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    keep(tmp_path, record())
    with pytest.raises(RecordError, match="knee list"):
        call("nothing", "--out", tmp_path)


def test_nothing_in_a_claim_reaches_the_terminal_as_a_command(tmp_path: Path) -> None:
    nasty = Claim(code="x", statement=NASTY, verdict="refuted", effect=None, sentence=NASTY)
    path = keep(tmp_path, record("sweep", claims=[nasty]))
    for page in (call(path).stdout, call(path, "--json").stdout):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", page)
    assert "[bold]" in call(path).stdout
