"""What `make` promises: a readable list of targets."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_help_lists_the_targets_in_two_columns() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith("make")]
    assert all(re.fullmatch(r"[a-z-]+ +[A-Z].*", line) and line[11] == " " != line[12] for line in lines), lines
    assert {"help", "run", "test", "clean"} <= {line.split()[0] for line in lines}
