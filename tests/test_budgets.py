"""Budgets that keep knee light: what an import loads, how much code the core has, how long a function may be."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "knee"
SLOW = {
    "numpy",
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "rich",
    "pydantic",
    "huggingface_hub",
    "gguf",
    "jinja2",
    "psutil",
    "matplotlib",
}


@pytest.mark.parametrize("program", ["import knee", "from knee.cli.main import main; main(['--help'])"])
def test_import_and_help_load_nothing_slow(program: str) -> None:
    check = (
        f"import sys\ntry:\n    {program}\nexcept SystemExit:\n    pass\nprint(sorted(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in ast.literal_eval(done.stderr.splitlines()[-1])}
    assert not loaded & SLOW


def test_a_trial_s_process_loads_nothing_that_only_judges_or_shows() -> None:
    check = "import sys, knee.lab.worker; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    loaded = ast.literal_eval(done.stdout)
    assert "numpy" in loaded
    assert not {name.split(".")[0] for name in loaded} & {"rich", "pydantic", "matplotlib", "click"}
    assert not [name for name in loaded if name.startswith(("knee.lab.judgement", "knee.lab.report", "knee.cli"))]


def test_no_dependency_needs_torch_and_no_device_loads_it_before_it_is_made() -> None:
    modules = "knee.cli.main, knee.llm, knee.devices, knee.devices.cuda.batch, knee.lab.sweep, knee.lab.report"
    check = f"import {modules}, sys; sys.exit(bool({{'torch', 'triton'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_core_stays_under_2500_lines_of_code() -> None:
    files = [*(SOURCE / "engine").rglob("*.py"), *(SOURCE / "models").rglob("*.py"), SOURCE / "program.py"]
    assert sum(lines_of_code(path) for path in files) < 2500


def lines_of_code(path: Path) -> int:
    """Lines that hold more than a comment or a docstring."""
    text = path.read_text(encoding="utf-8")
    doc_lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            doc_lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {line for token in tokens if token.type not in ignored for line in range(token.start[0], token.end[0] + 1)}
    return len(lines - doc_lines)


def functions() -> Iterator[tuple[str, int]]:
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.name}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def test_no_function_is_over_80_lines() -> None:
    assert [(name, length) for name, length in functions() if length > 80] == []
