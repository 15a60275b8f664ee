"""How many threads a device should use on this machine."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Logical CPUs that this process may run on."""
    # Linux only.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
