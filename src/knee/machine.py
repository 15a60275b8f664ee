"""What this process may use of the machine: cores and memory, within an affinity mask and a container's limits.

Linux tells all of it, in cgroups of version 1 or 2; where a system does not, there is a fallback and no error.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def usable_cores() -> int:
    """Logical CPUs that this process can keep busy: affinity mask and CPU quota, whichever is smaller."""
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else ()  # macOS has no masks
    allowed = len(affinity) or os.cpu_count() or 1
    quota = cpu_quota()
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def default_threads() -> int:
    """One thread a usable core; on Apple's processors only the performance cores.

    The efficiency cores would get as large a part of each operation, and all others would wait for them.
    """
    return min(usable_cores(), _performance_cores() or sys.maxsize)


def _performance_cores() -> int | None:
    if sys.platform != "darwin":
        return None
    command = ["sysctl", "-n", "hw.perflevel0.physicalcpu"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return int(answer) if answer.isdecimal() and int(answer) else None  # Intel Macs have no such levels


def cpu_quota() -> float | None:
    """CPUs that the container's quota allows (1.5 is one and a half), None where there is no quota."""
    quotas = [_quota_of(folder) for folder in _cgroups("cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit() -> int | None:
    """Bytes that the container may use, None where there is no limit."""
    limits = [_limit_of(folder) for folder in _cgroups("memory")]
    return min((limit for limit in limits if limit is not None), default=None)


def lines_of(file: Path) -> list[str]:
    """Lines of a file of the system's; none where it cannot be read."""
    try:
        return file.read_text(errors="replace").splitlines()
    except OSError:
        return []


def first_line(file: Path) -> str:
    """Of a file of the system's; nothing where it cannot be read."""
    return next(iter(lines_of(file)), "").strip()


def _cgroups(controller: str) -> list[Path]:
    """Folders that may limit this process: its own cgroup and all above it, in both versions' layouts."""
    folders: list[Path] = []
    for line in lines_of(_OWN_CGROUPS):
        _, names, own = [*line.split(":", 2), "", ""][:3]
        if names and controller not in names.split(","):
            continue
        root = _CGROUPS / names if names else _CGROUPS
        inside = Path(own.lstrip("/"))
        folders += [root / part for part in (inside, *inside.parents)]
    return folders


def _quota_of(folder: Path) -> float | None:
    v2 = first_line(folder / "cpu.max").split()
    v1 = [first_line(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
    quota, period = v2 if len(v2) == 2 else v1
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _limit_of(folder: Path) -> int | None:
    limit = first_line(folder / "memory.max") or first_line(folder / "memory.limit_in_bytes")
    return int(limit) if limit.isdecimal() else None
