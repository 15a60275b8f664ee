"""What `make` promises: a readable list of targets, and tests that do not vanish."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MUST_RUN, check_oracle, unavailable

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_help_lists_the_targets_in_two_columns() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("make")]
    assert all(re.fullmatch(r"[a-z-]+ +[A-Z].*", line) and line[11] == " " != line[12] for line in lines), lines
    assert {"help", "run", "test", "clean"} <= {line.split()[0] for line in lines}


def test_what_cannot_be_had_fails_only_where_all_must_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MUST_RUN, raising=False)
    with pytest.raises(pytest.skip.Exception, match="no network"):
        unavailable("no network")
    monkeypatch.setenv(MUST_RUN, "1")
    with pytest.raises(pytest.fail.Exception, match="no network"):
        unavailable("no network")


def test_a_missing_oracle_ends_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(pytest.exit.Exception, match="torch cannot be imported"):
        check_oracle()


def test_make_test_says_that_all_must_run() -> None:
    assert f"{MUST_RUN}=1 " in (ROOT / "Makefile").read_text()
