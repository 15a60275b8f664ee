"""`knee doctor`: what this machine can do, and what about it would spoil a measurement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from knee.cli.terminal import json_option, lang_option, print_json, print_table, tell

if TYPE_CHECKING:
    from knee.lab.doctor import Report
    from knee.lab.messages import Lang
    from knee.lab.speed import Rate


@click.command()
@json_option
@lang_option
def command(as_json: bool, lang: Lang) -> None:
    """Measure this machine and say what would spoil an experiment on it."""
    from knee.lab.doctor import examine
    from knee.lab.messages import text

    tell(text(lang, "doctor.measuring"))
    report = examine()
    if as_json:
        print_json(report.to_json(lang))
        return
    print_table(["", ""], _rows(report, lang), text(lang, "doctor.title"))
    if not report.findings:
        click.echo(text(lang, "doctor.no_findings"))
    for finding in report.findings:
        click.echo(f"! {finding.message(lang)}\n  {finding.advice(lang)}")


def _rows(report: Report, lang: Lang) -> Iterator[tuple[str, str]]:
    from knee.lab.doctor import bfloat16_note, kernels_note
    from knee.lab.messages import text

    hardware, speed = report.hardware, report.speed
    none = text(lang, "record.none")
    yield text(lang, "doctor.cpu"), hardware.cpu
    yield text(lang, "doctor.cores"), str(hardware.cores)
    yield text(lang, "doctor.isa"), " ".join(hardware.isa) or none
    yield text(lang, "doctor.kernels"), kernels_note(speed.kernels, lang)
    yield text(lang, "doctor.memory"), f"{hardware.memory_gib:.1f} GiB"
    gpus = [text(lang, "record.gpu", name=gpu.name, memory=gpu.memory_gib, driver=gpu.driver) for gpu in hardware.gpus]
    yield text(lang, "doctor.gpus"), "; ".join(gpus) or none
    yield text(lang, "doctor.read"), _rate(speed.read_gb_s, "GB/s", lang)
    yield text(lang, "doctor.copy"), _rate(speed.copy_gb_s, "GB/s", lang)
    yield text(lang, "doctor.float32"), _rate(speed.float32_gflop_s, "GFLOP/s", lang)
    bfloat16 = _rate(speed.bfloat16_gflop_s, "GFLOP/s", lang)
    yield text(lang, "doctor.bfloat16"), f"{bfloat16}; {bfloat16_note(hardware, lang, speed.kernels)}"
    for key, rate in (("doctor.int8", speed.int8_gflop_s), ("doctor.int4", speed.int4_gflop_s)):
        if rate is not None:
            yield text(lang, key), _rate(rate, "GFLOP/s", lang)
    yield from _gpu(report, lang)
    yield from _state(report, lang)


def _gpu(report: Report, lang: Lang) -> Iterator[tuple[str, str]]:
    """The speeds of a GPU that is there, or why there are none."""
    from knee.lab.messages import text

    if (gpu := report.gpu) is None:
        if report.gpu_note:
            yield text(lang, "doctor.gpu_speed"), text(lang, "doctor.gpu_not_measured", reason=report.gpu_note)
        return
    yield text(lang, "doctor.gpu_read"), _rate(gpu.read_gb_s, "GB/s", lang)
    yield text(lang, "doctor.gpu_copy"), _rate(gpu.copy_gb_s, "GB/s", lang)
    yield text(lang, "doctor.gpu_float32"), _rate(gpu.float32_gflop_s, "GFLOP/s", lang)
    yield text(lang, "doctor.gpu_bfloat16"), _rate(gpu.bfloat16_gflop_s, "GFLOP/s", lang)
    yield text(lang, "doctor.gpu_float16"), _rate(gpu.float16_gflop_s, "GFLOP/s", lang)


def _state(report: Report, lang: Lang) -> Iterator[tuple[str, str]]:
    from knee.lab.messages import text

    state = report.state
    unknown, none = text(lang, "doctor.unknown"), text(lang, "record.none")
    power = {True: text(lang, "doctor.on_battery"), False: text(lang, "doctor.on_mains"), None: unknown}
    quota = none if state.cpu_quota is None else text(lang, "doctor.load_cores", cores=state.cpu_quota)
    yield text(lang, "doctor.load"), text(lang, "doctor.load_cores", cores=state.other_load)
    yield text(lang, "doctor.swap_used"), f"{state.swap_used_gib:.2f} GiB"
    yield text(lang, "doctor.quota"), quota
    yield text(lang, "doctor.scaling_governor"), state.governor or unknown
    yield text(lang, "doctor.power"), power[state.on_battery]
    yield text(lang, "doctor.temperature"), unknown if state.temperature_c is None else f"{state.temperature_c:.0f} °C"
    yield text(lang, "doctor.timer"), f"{state.timer_resolution_ns} ns"


def _rate(rate: Rate, unit: str, lang: Lang) -> str:
    from knee.lab.messages import text

    return text(lang, "doctor.rate", best=rate.best, median=rate.median, runs=rate.runs, how=rate.how, unit=unit)
