"""The machine is read as this process may use it, and where it does not tell, there is a fallback and no error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from knee import machine
from knee.lab import environment
from knee.lab.environment import read_hardware, read_software

Tools = Callable[[dict[str, str]], None]


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, str]], None]:
    """Pretend to be in a container: the text of /proc/self/cgroup, and files below /sys/fs/cgroup."""

    def pretend(own: str, files: dict[str, str]) -> None:
        (tmp_path / "own").write_text(own)
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
        monkeypatch.setattr(machine, "_OWN_CGROUPS", tmp_path / "own")

    return pretend


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> Tools:
    """Pretend that these tools exist and answer so; all others are missing."""

    def pretend(answers: dict[str, str]) -> None:
        monkeypatch.setattr(environment.shutil, "which", lambda name: name if name in answers else None)
        monkeypatch.setattr(environment, "_answer", lambda *command: answers.get(command[0]))

    return pretend


@pytest.fixture
def cpuinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def pretend(content: str) -> None:
        (tmp_path / "cpuinfo").write_text(content)
        monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "cpuinfo")
        monkeypatch.setattr(sys, "platform", "linux")

    return pretend


def test_this_machine_reads_as_something_sensible() -> None:
    hardware = read_hardware()
    assert hardware.cpu
    assert 1 <= hardware.cores <= (os.cpu_count() or 1)
    assert 0 < hardware.memory_gib <= psutil.virtual_memory().total / 2**30 + 0.01


def test_nothing_raises_and_nothing_is_invented_on_a_machine_that_tells_nothing(
    tools: Tools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools({})
    monkeypatch.setattr(environment, "_CPUINFO", tmp_path / "missing")
    for name in ("_CGROUPS", "_OWN_CGROUPS"):
        monkeypatch.setattr(machine, name, tmp_path / "missing")
    hardware = read_hardware()
    assert hardware.cpu
    assert (hardware.isa, hardware.gpus) == ([], [])
    assert (read_software().git_commit, read_software().git_dirty) == (None, None)


@pytest.mark.parametrize(
    ("own", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000"}, None),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "200000 100000"}, 0.5),
        ("4:cpu,cpuacct:/x\n1:name=systemd:/\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "-1"}, None),
        (
            "4:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "300000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            3.0,
        ),
        ("4:memory:/\n", {"memory/cpu.max": "1 1"}, None),
        ("nonsense\n", {"cpu.max": "1"}, None),
    ],
)
def test_the_quota_of_a_container_is_the_smallest_on_the_way_up(
    cgroups: Callable[[str, dict[str, str]], None], own: str, files: dict[str, str], quota: float | None
) -> None:
    cgroups(own, files)
    assert machine.cpu_quota() == quota


@pytest.mark.parametrize(("quota", "cores"), [("50000", 1), ("250000", 2), ("6400000", 4)])
def test_usable_cores_are_whole_and_at_least_one(
    cgroups: Callable[[str, dict[str, str]], None], monkeypatch: pytest.MonkeyPatch, quota: str, cores: int
) -> None:
    cgroups("0::/\n", {"cpu.max": f"{quota} 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 2, 4, 6}, raising=False)
    assert machine.usable_cores() == cores


@pytest.mark.parametrize(("answer", "threads"), [("2\n", 2), ("0\n", 4), ("", 4), ("64\n", 4)])
def test_on_apple_s_processors_the_efficiency_cores_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, answer: str, threads: int
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    assert machine.default_threads() == 4
    monkeypatch.setattr(sys, "platform", "darwin")
    done = subprocess.CompletedProcess([], 0, stdout=answer)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    assert machine.default_threads() == threads


def test_a_mac_without_its_tools_uses_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(subprocess, "run", fail)
    assert machine.default_threads() == 4


@pytest.mark.parametrize(("file", "own"), [("memory.max", "0::/\n"), ("memory/memory.limit_in_bytes", "2:memory:/\n")])
def test_memory_is_what_the_container_may_use(
    cgroups: Callable[[str, dict[str, str]], None], file: str, own: str
) -> None:
    cgroups(own, {file: str(2**29)})
    assert read_hardware().memory_gib == 0.5
    cgroups(own, {file: "9223372036854771712"})  # how version 1 says "no limit"
    assert read_hardware().memory_gib == pytest.approx(psutil.virtual_memory().total / 2**30, abs=0.01)


def test_an_x86_names_its_vector_extensions(cpuinfo: Callable[[str], None], tools: Tools) -> None:
    tools({})
    cpuinfo("processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu fma avx2 avx512_bf16 avx512f sse2\n")
    hardware = read_hardware()
    assert hardware.cpu == "AMD EPYC 9R14"
    assert hardware.isa == ["avx2", "fma", "avx512f", "avx512_bf16"]


def test_an_arm_server_names_its_vector_extensions(cpuinfo: Callable[[str], None], tools: Tools) -> None:
    tools({})
    cpuinfo("processor\t: 0\nFeatures\t: fp asimd asimddp bf16 i8mm sve\nCPU implementer\t: 0x41\n")
    assert read_hardware().isa == ["asimd", "dotprod", "bf16", "i8mm", "sve"]


def test_a_mac_is_asked_through_sysctl(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {
        "machdep.cpu.brand_string": "Apple M3 Pro",
        "hw.optional": "hw.optional.AdvSIMD: 1\nhw.optional.arm.FEAT_BF16: 1\nhw.optional.arm.FEAT_DotProd: 1\n"
        "hw.optional.arm.FEAT_I8MM: 0\nhw.optional.avx512f: 0",
    }
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(environment, "_answer", lambda *command: answers.get(command[-1]))
    hardware = read_hardware()
    assert hardware.cpu == "Apple M3 Pro"
    assert hardware.isa == ["asimd", "dotprod", "bf16"]


def test_gpus_are_what_nvidia_smi_lists(tools: Tools) -> None:
    tools({"nvidia-smi": "NVIDIA H100 80GB HBM3, 81559, 550.54.15\nNVIDIA GB10, [N/A], 580.1\nnot a line"})
    [gpu] = read_hardware().gpus
    assert (gpu.name, gpu.memory_gib, gpu.driver) == ("NVIDIA H100 80GB HBM3", 79.65, "550.54.15")


def test_software_names_knee_and_what_it_stands_on() -> None:
    software = read_software()
    assert software.knee
    assert {"numpy", "pydantic"} <= set(software.packages)
    assert "pytest" not in software.packages


def git(folder: Path, *command: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", str(folder), *identity, *command], check=True, capture_output=True)


def test_the_commit_is_that_of_knee_s_own_checkout_and_no_other(tmp_path: Path) -> None:
    package = tmp_path / "src" / "knee"
    package.mkdir(parents=True)
    (package / "a.py").write_text("")
    assert environment._git_state(package) == (None, None)
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "a")
    commit, dirty = environment._git_state(package)
    assert len(commit or "") == 40
    assert dirty is False
    (package / "a.py").write_text("changed")
    assert environment._git_state(package) == (commit, True)
    elsewhere = tmp_path / ".venv" / "knee"
    elsewhere.mkdir(parents=True)
    assert environment._git_state(elsewhere) == (None, None)


def test_a_tool_that_hangs_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "_TOOL_SECONDS", 0.05)
    assert environment._answer("sleep", "5") is None
    assert environment._answer("no-such-tool") is None
    assert environment._answer("false") is None
