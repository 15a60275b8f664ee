"""How fast the GPU is, for the roofline and for `knee doctor`; the measuring itself is the cuda device's."""

from __future__ import annotations

from dataclasses import dataclass

from knee.devices.cuda import limits
from knee.lab.records import Gpu
from knee.lab.speed import Rate


@dataclass(frozen=True, slots=True)
class GpuSpeed:
    """Bandwidths in GB/s (a copy counts its read and its write), arithmetic in GFLOP/s."""

    name: str
    read_gb_s: Rate
    copy_gb_s: Rate
    float32_gflop_s: Rate
    bfloat16_gflop_s: Rate
    float16_gflop_s: Rate


def measure_gpu_roofs(dtype: str) -> tuple[Rate, Rate]:
    """Reading in GB/s, by the faster of reading and copying, and arithmetic with weights of one type in GFLOP/s."""
    read = max(limits.read_speed(), limits.copy_speed(), key=lambda speed: speed.best)
    product = limits.product_speed(dtype)
    limits.release()
    return _rate(read), _rate(product)


def look_at_gpu(gpus: list[Gpu]) -> tuple[GpuSpeed | None, str]:
    """The speeds of the first GPU and "", or None and why; "" for a machine without one. Never raises."""
    if not gpus:
        return None, ""
    if why := limits.unavailable():
        return None, why
    try:
        return _measured(), ""
    except Exception as error:  # memory that others hold, a driver of another age: nothing that a look should end with
        return None, str(error).strip().split("\n")[0] or type(error).__name__


def _measured() -> GpuSpeed:
    return GpuSpeed(
        limits.name(),
        _rate(limits.read_speed()),
        _rate(limits.copy_speed()),
        *(_rate(limits.product_speed(dtype)) for dtype in ("float32", "bfloat16", "float16")),
    )


def _rate(speed: limits.Speed) -> Rate:
    return Rate(*speed)
