"""What the experiment ran on: the machine and the software, read and never typed.

Reads files, asks the system's own tools, and falls back where there are none; nothing here raises, measures or
imports a device's library. Cores and memory are what this process may use (`machine.py`).
"""

from __future__ import annotations

import importlib.metadata
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

import knee
from knee.lab.records import Gpu, Hardware, Software
from knee.machine import lines_of, memory_limit, usable_cores

_CPUINFO = Path("/proc/cpuinfo")
_TOOL_SECONDS = 5.0

# What each system calls an extension -> the name in a record, widest last.
_ISA = {
    "avx2": "avx2",
    "fma": "fma",
    "f16c": "f16c",
    "avx_vnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512_vnni": "avx512_vnni",
    "avx512vnni": "avx512_vnni",
    "avx512_bf16": "avx512_bf16",
    "avx512bf16": "avx512_bf16",
    "amx_bf16": "amx_bf16",
    "amx_int8": "amx_int8",
    "asimd": "asimd",
    "advsimd": "asimd",
    "asimddp": "dotprod",
    "feat_dotprod": "dotprod",
    "bf16": "bf16",
    "feat_bf16": "bf16",
    "i8mm": "i8mm",
    "feat_i8mm": "i8mm",
    "sve": "sve",
    "sve2": "sve2",
    "feat_sme": "sme",
}


# --- hardware ----------------------------------------------------------------------------------------------------


def read_hardware() -> Hardware:
    """The machine as this process may use it."""
    return Hardware(cpu=_cpu_name(), cores=usable_cores(), isa=_isa(), memory_gib=round(_memory_gib(), 2), gpus=_gpus())


def has_nvidia_smi() -> bool:
    """Whether there is the command that comes with NVIDIA's driver: where it is not, there is no such GPU."""
    return shutil.which("nvidia-smi") is not None


def _cpu_name() -> str:
    if sys.platform == "darwin":
        name = _run("sysctl", "-n", "machdep.cpu.brand_string")
    else:
        name = next(_cpuinfo("model name"), "")
    return name or platform.processor() or platform.machine() or "unknown"


def _isa() -> list[str]:
    if sys.platform == "darwin":
        switched_on = re.findall(r"^hw\.optional\.(?:\w+\.)*(\w+): 1$", _run("sysctl", "hw.optional"), re.MULTILINE)
        intel = _run("sysctl", "-n", "machdep.cpu.features", "machdep.cpu.leaf7_features").split()
        return _known_isa([*switched_on, *intel])
    return _known_isa(" ".join([*_cpuinfo("flags"), *_cpuinfo("Features")]).split())


def _known_isa(flags: Iterable[str]) -> list[str]:
    found = {_ISA.get(flag.lower()) for flag in flags}
    return [name for name in dict.fromkeys(_ISA.values()) if name in found]


def _cpuinfo(key: str) -> Iterator[str]:
    for line in lines_of(_CPUINFO):
        name, _, value = line.partition(":")
        if name.strip() == key and value.strip():
            yield value.strip()
            return  # the first core speaks for all


def _memory_gib() -> float:
    total = psutil.virtual_memory().total
    return min(total, memory_limit() or total) / 2**30


def _gpus() -> list[Gpu]:
    if not has_nvidia_smi():
        return []
    answer = _run("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
    return [gpu for line in answer.splitlines() if (gpu := _gpu(line)) is not None]


def _gpu(line: str) -> Gpu | None:
    match = re.fullmatch(r"(.+?), *(\d+), *(\S+)", line.strip())
    return Gpu(name=match[1], memory_gib=round(int(match[2]) / 1024, 2), driver=match[3]) if match else None


# --- software ----------------------------------------------------------------------------------------------------


def read_software() -> Software:
    """knee, its dependencies, Python and the operating system."""
    commit, dirty = _git_state(Path(knee.__file__).parent)
    return Software(
        knee=knee.__version__,
        git_commit=commit,
        git_dirty=dirty,
        python=platform.python_version(),
        packages=_packages(),
        platform=platform.platform(),
    )


def _git_state(package: Path) -> tuple[str | None, bool | None]:
    top = _run("git", "-C", str(package), "rev-parse", "--show-toplevel")
    # A virtual environment may lie inside the checkout of something else: its commit says nothing about knee.
    if not top or package != Path(top) / "src" / "knee":
        return None, None
    changes = _answer("git", "--no-optional-locks", "-C", top, "status", "--porcelain")
    return _answer("git", "-C", top, "rev-parse", "HEAD"), None if changes is None else bool(changes)


def _packages() -> dict[str, str]:
    versions = {}
    for requirement in _requirements():
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed
    return versions


def _requirements() -> list[str]:
    try:
        requirements = importlib.metadata.requires("knee") or []
    except importlib.metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return []
    return [one for one in requirements if not re.search(r"extra\s*==\s*['\"]dev['\"]", one)]


# --- asking the system -------------------------------------------------------------------------------------------


def _run(*command: str) -> str:
    """What a tool prints; nothing if it is missing, fails or hangs."""
    return _answer(*command) or ""


def _answer(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TOOL_SECONDS)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
