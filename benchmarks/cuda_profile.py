"""Where a decode step's time goes on the GPU: its kernels, by torch.profiler.

torch is imported when something is profiled, and not before.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.table import Table

from knee.engine.engine import Engine
from knee.engine.types import SamplingParams, StepStats

SETTLED = 8  # decode steps before the first that counts
_SHOWN = 18  # kernels of a table; the rest is one line


@dataclass(frozen=True, slots=True)
class Kernel:
    """One kernel, or kind of copy: calls and microseconds of a step, and its share of all kernels' time."""

    name: str
    calls: float
    us: float
    share: float


@dataclass(frozen=True, slots=True)
class Profile:
    """Kernels of the decode steps of a batch, the slowest first.

    `device_ms` and `step_ms` are medians of as many steps just before, without the profiler: by the device's clock
    (CUDA events), and the whole step. `note` says what was not as usual.
    """

    batch: int
    steps: int
    kernels: tuple[Kernel, ...]
    device_ms: float
    step_ms: float
    note: str = ""

    @property
    def kernel_ms(self) -> float:
        """All kernels of a step."""
        return sum(kernel.us for kernel in self.kernels) / 1e3


def new_tokens(steps: int) -> int:
    """That each request of a profile makes."""
    return SETTLED + 3 * steps + 4


def profile_decode(engine: Engine, prompts: Sequence[Sequence[int]], steps: int) -> Profile:
    """Profile steps of a batch in decode; the engine is idle before and after."""
    params = SamplingParams(max_new_tokens=new_tokens(steps), ignore_eos=True)
    requests = [engine.submit(prompt, params) for prompt in prompts]
    while any(not request.output for request in requests):
        engine.step()
    for _ in range(SETTLED):
        engine.step()
    plain = [stats for _ in range(steps) if (stats := engine.step().stats)]
    kernels, note = _profiled(engine, steps), ""
    if not kernels and getattr(engine.device, "graphs", False):
        # Some drivers show a graph's launch and not the kernels in it.
        engine.device.graphs = False
        kernels, note = _profiled(engine, steps), "kernels seen with CUDA graphs off: the profiler shows none in graphs"
        engine.device.graphs = True
    for _ in engine.run():
        pass
    return Profile(len(prompts), steps, tuple(kernels), *_medians(plain), note)


def _medians(steps: Sequence[StepStats]) -> tuple[float, float]:
    device, whole = (
        statistics.median(times) for times in zip(*[(s.device_time, s.duration) for s in steps], strict=True)
    )
    return 1e3 * device, 1e3 * whole


def _profiled(engine: Engine, steps: int) -> list[Kernel]:
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(steps):
            engine.step()
        torch.cuda.synchronize()
    events = [event for event in seen.key_averages() if event.device_type == DeviceType.CUDA]
    return kernels_of([(event.key, event.count, event.self_device_time_total) for event in events], steps)


def kernels_of(events: Iterable[tuple[str, int, float]], steps: int) -> list[Kernel]:
    """(name, calls, µs in all) of so many steps, as kernels of one step, the slowest first."""
    found = sorted(events, key=lambda event: -event[2])
    total = sum(us for _, _, us in found)
    return [Kernel(name, calls / steps, us / steps, us / total if total else 0.0) for name, calls, us in found]


def profile_table(profile: Profile) -> Table:
    """The slowest kernels, the others together, and their sum beside the step's own time."""
    title = f"decode at batch {profile.batch}, {profile.steps} steps"
    table = Table("kernel", "calls/step", "µs/step", "share", title=title, caption=profile.note or None)
    shown, rest = profile.kernels[:_SHOWN], profile.kernels[_SHOWN:]
    if rest:
        name, sums = (
            f"{len(rest)} others",
            [sum(getattr(one, part) for one in rest) for part in ("calls", "us", "share")],
        )
        shown = (*shown, Kernel(name, *sums))
    for kernel in shown:
        table.add_row(kernel.name[:70], f"{kernel.calls:.1f}", f"{kernel.us:,.1f}", f"{kernel.share:.1%}")
    table.add_section()
    table.add_row("all kernels", "", f"{1e3 * profile.kernel_ms:,.1f}", "")
    table.add_row("the device's clock, without profiler", "", f"{1e3 * profile.device_ms:,.1f}", "")
    table.add_row("the whole step, without profiler", "", f"{1e3 * profile.step_ms:,.1f}", "")
    return table
