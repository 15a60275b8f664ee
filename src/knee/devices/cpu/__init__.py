"""The CPU, through native code (the extension module `_native`, which is imported when a device is made)."""

from __future__ import annotations

from knee.devices.cpu.device import CpuDevice

__all__ = ["CpuDevice"]
