"""Which device "auto" is where there is an NVIDIA GPU, why the cuda device cannot run, and how much memory it takes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import knee.devices
from knee.devices import CpuDevice, CudaDevice, choose_device
from knee.devices.cuda import device
from knee.errors import UserError

GIB = 2**30


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (knee.devices, device):
        monkeypatch.setattr(module, "has_gpu", lambda: True)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (knee.devices, device):
        monkeypatch.setattr(module, "has_gpu", lambda: False)


def install(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """Of torch and triton, these can be imported."""
    found = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        if name in ("torch", "triton"):
            return SimpleNamespace(name=name) if name in names else None
        return found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


def fake_torch(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] | None = (9, 0), **cuda: Any) -> None:
    """A torch that says what it is told to say of the GPU; `capability` None: it cannot use it."""
    install(monkeypatch, "torch", "triton")
    gpu = SimpleNamespace(
        is_available=lambda: capability is not None,
        get_device_capability=lambda: capability,
        get_device_name=lambda: "NVIDIA Tesla T4",
        **cuda,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="2.13.0+cpu", cuda=gpu))  # type: ignore[arg-type]


@pytest.mark.usefixtures("gpu")
def test_auto_is_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch)
    assert choose_device("auto") is CudaDevice
    assert choose_device("auto", "float16") is CudaDevice
    assert choose_device("cpu") is CpuDevice


@pytest.mark.usefixtures("no_gpu")
def test_without_one_auto_is_the_processor_and_cuda_an_error() -> None:
    assert choose_device("auto") is CpuDevice
    with pytest.raises(
        UserError, match=r"device cuda cannot run here: there is no NVIDIA GPU here, or no driver for it$"
    ):
        choose_device("cuda")


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("installed", "missing"), [([], "torch and triton"), (["torch"], "triton"), (["triton"], "torch")]
)
def test_a_gpu_without_torch_is_told_and_never_passed_over(
    monkeypatch: pytest.MonkeyPatch, installed: list[str], missing: str
) -> None:
    install(monkeypatch, *installed)
    why = rf"device cuda cannot run here: {missing} missing: \S+ -m pip install torch triton nvidia-ml-py"
    with pytest.raises(UserError, match=f"{why}; or --device cpu$"):
        choose_device("auto")
    with pytest.raises(UserError, match=f"{why}$"):
        choose_device("cuda")


@pytest.mark.usefixtures("gpu")
def test_a_torch_that_cannot_use_the_gpu_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch, capability=None)
    with pytest.raises(UserError, match=r"this torch \(2.13.0\+cpu\) cannot use the GPU: .*; or --device cpu"):
        choose_device("auto")


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_is_too_old_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch, capability=(7, 5))
    with pytest.raises(UserError, match=r"NVIDIA Tesla T4 is too old: compute capability 8.0 .*; or --device cpu"):
        choose_device("auto")


@pytest.mark.usefixtures("gpu")
def test_a_weight_type_that_only_the_processor_has_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch)
    with pytest.raises(UserError, match=r"device cuda has no 'int4'; its weight types: auto, float32, bfloat16"):
        choose_device("auto", "int4")


def test_looking_for_a_gpu_imports_nothing_slow() -> None:
    code = "import sys; from knee.devices.cuda.device import has_gpu; has_gpu(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("fraction", "free"), [(None, 62), ("1", 70), ("0.5", 30), ("0.125", 0)])
def test_free_memory_stays_within_the_fraction(
    monkeypatch: pytest.MonkeyPatch, fraction: str | None, free: int
) -> None:
    """80 GiB, of which 20 are taken, 10 of those by torch for reuse."""
    if fraction is None:
        monkeypatch.delenv(device.MEMORY_VARIABLE, raising=False)
    else:
        monkeypatch.setenv(device.MEMORY_VARIABLE, fraction)
    fake_torch(
        monkeypatch,
        mem_get_info=lambda: (60 * GIB, 80 * GIB),
        memory_reserved=lambda: 15 * GIB,
        memory_allocated=lambda: 5 * GIB,
    )
    assert CudaDevice.free_memory() == free * GIB


@pytest.mark.parametrize("fraction", ["0", "1.5", "-1", "half", "nan"])
def test_a_fraction_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch, fraction: str) -> None:
    monkeypatch.setenv(device.MEMORY_VARIABLE, fraction)
    with pytest.raises(UserError, match=f"{device.MEMORY_VARIABLE} is '{fraction}': it must be above 0 and at most 1"):
        device.memory_fraction()


def test_without_a_gpu_memory_is_the_machine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_torch(monkeypatch, capability=None)
    assert CudaDevice.free_memory() is None
