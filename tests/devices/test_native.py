"""The kernels' own test, which needs no Python: built with sanitizers here, and for ARM under emulation."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"


def build(folder: Path, *options: str) -> Path:
    """The test program, made in a folder of its own."""
    configure = ["cmake", "-S", NATIVE, "-B", folder, "-DKNEE_MODULE=OFF", "-DKNEE_TEST=ON", *options]
    for command in (configure, ["cmake", "--build", folder, "--parallel", "2"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "native_test"


def run(*command: object) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_no_kernel_leaves_its_memory_or_changes_a_bit_with_the_batch(tmp_path: Path) -> None:
    program = build(tmp_path, "-DKNEE_SANITIZE=ON")
    assert "portable: 3 rounds passed" in run(program, 11, 3)


@pytest.mark.skipif(
    not all(map(shutil.which, ("cmake", "aarch64-linux-gnu-g++", "qemu-aarch64"))),
    reason="needs cmake, g++-aarch64-linux-gnu and qemu-user",
)
def test_neon_kernels_compute_the_same_under_emulation(tmp_path: Path) -> None:
    program = build(tmp_path, f"-DCMAKE_TOOLCHAIN_FILE={NATIVE / 'cross-aarch64.cmake'}")
    output = run("qemu-aarch64", "-cpu", "max", program, 1, 2)
    for kernels in ("neon_bf16", "neon_dotprod", "neon", "portable"):
        assert f"{kernels}: 2 rounds passed" in output
