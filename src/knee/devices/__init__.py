"""The devices that can run a program, by name."""

from __future__ import annotations

from knee.devices.base import Device, Span, SpanOutput, Want
from knee.devices.cpu import CpuDevice
from knee.devices.cuda import CudaDevice
from knee.devices.cuda.device import has_gpu
from knee.devices.reference import ReferenceDevice
from knee.errors import UserError

__all__ = [
    "DEVICES",
    "CpuDevice",
    "CudaDevice",
    "Device",
    "ReferenceDevice",
    "Span",
    "SpanOutput",
    "Want",
    "choose_device",
]

# In the order of preference of "auto".
DEVICES: dict[str, type[Device]] = {"cuda": CudaDevice, "cpu": CpuDevice, "reference": ReferenceDevice}


def choose_device(name: str, dtype: str = "auto", threads: int | None = None) -> type[Device]:
    """The device of that name, "auto" for the best there is.

    Raises `UserError` for a device that is not there or cannot run here, a weight type that it does not have, or fewer
    than one thread; nothing has been loaded by then. "auto" never takes a slower device than the best one in silence:
    where there is a GPU that knee cannot use, that is an error, and `--device cpu` a choice.
    """
    chosen = ("cuda" if has_gpu() else "cpu") if name == "auto" else name
    if chosen not in DEVICES:
        raise UserError(f"device {name!r} is not available; this knee has: auto, {', '.join(DEVICES)}")
    device = DEVICES[chosen]
    if why := device.unavailable():
        instead = "; or --device cpu" if name == "auto" and chosen == "cuda" else ""
        raise UserError(f"device {chosen} cannot run here: {why}{instead}")
    if dtype not in ("auto", *device.dtypes):
        raise UserError(f"device {chosen} has no {dtype!r}; its weight types: auto, {', '.join(device.dtypes)}")
    if threads is not None and threads < 1:
        raise UserError(f"the number of threads is {threads}: it must be at least 1")
    return device
