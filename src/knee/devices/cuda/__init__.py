"""NVIDIA GPUs, through torch and Triton kernels of our own (the extra `cuda`)."""

from __future__ import annotations

from knee.devices.cuda.device import CudaDevice

__all__ = ["CudaDevice"]
