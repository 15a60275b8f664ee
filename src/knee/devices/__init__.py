"""The devices that can run a program, by name."""

from __future__ import annotations

from collections.abc import Mapping

from knee.devices.base import Device, FloatArray, Span, SpanOutput, Want
from knee.devices.reference import ReferenceDevice
from knee.errors import UserError
from knee.program import Program

__all__ = ["DEVICES", "Device", "Span", "SpanOutput", "Want", "make_device"]

# In the order of preference of "auto".
DEVICES = {"reference": ReferenceDevice}


def make_device(
    name: str, program: Program, weights: Mapping[str, FloatArray], dtype: str = "auto", threads: int | None = None
) -> Device:
    """A device with a program and its float32 weights on it. Raises `UserError` for one that is not there."""
    chosen = next(iter(DEVICES)) if name == "auto" else name
    if chosen not in DEVICES:
        raise UserError(f"device {name!r} is not available; this knee has: auto, {', '.join(DEVICES)}")
    return DEVICES[chosen](program, weights, dtype, threads)
