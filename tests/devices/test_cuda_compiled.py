"""The cuda device's kernels as Triton compiles them, for GPUs that need not be here: what one sum for all tiles asks.

The interpreter sums as NumPy does, so that only the compiler's output shows the order of a sum on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="the kernels need Triton and torch (pip install knee[oracle])")


@pytest.fixture(scope="module", params=["sm_80", "sm_90"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    command = [sys.executable, "-m", "tests.devices.compile_kernels", request.param]
    folder = Path(__file__).parents[2]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def linear_layers(compiled: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [kernel for kernel in compiled if "weight" in kernel]


def test_every_part_is_one_chain_of_products_from_zero(compiled: list[dict[str, Any]]) -> None:
    """Triton would rather begin a chain with a bias, or with another part."""
    assert linear_layers(compiled)
    for kernel in linear_layers(compiled):
        assert kernel["products"] == kernel["products_wanted"], kernel
        assert kernel["chains_begin_with"] == [], kernel


def test_inputs_go_to_the_matrix_instructions_in_one_order(compiled: list[dict[str, Any]]) -> None:
    """Where Triton sees 8-bit weights it takes four inputs in a row for each thread, and sums in another order."""
    for kernel in linear_layers(compiled):
        assert kernel["widths"] in ([], [2]), kernel
    assert {kernel["weight"] for kernel in linear_layers(compiled) if kernel["widths"]} == {
        "bfloat16",
        "float16",
        "int8",
    }


def test_shared_memory_is_enough(compiled: list[dict[str, Any]]) -> None:
    for kernel in compiled:
        assert kernel["shared"] <= kernel["most_shared"], kernel
