"""Compiles the cuda device's linear kernels for a GPU that need not be there, and prints what became of their products.

    python -m tests.devices.compile_kernels sm_90 sm_80

A line of JSON for each kernel. In a process of its own: in that of the tests Triton interprets.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from knee.devices.cuda.kernels.linear import linear_few_rows, linear_many_rows
from knee.devices.cuda.tiling import Tiling, choose_tiling, padded, parts_of

SHARED = {"sm_90": 225 * 1024, "sm_80": 156 * 1024}  # bytes a program may have
NARROW = {"bfloat16": ("*bf16", tl.bfloat16), "float16": ("*fp16", tl.float16), "int8": ("*i8", tl.bfloat16)}
INPUTS = {"plain": 1536, "gate": 576, "logits": 50}
ROWS = (1, 100, 2000)
_PRODUCT = re.compile(r"(%\w+)(?::\d+)? = (?:tt\.dot|ttng\.warp_group_dot) %[^,]+, %[^,]+, (%\w+)")


def compiled(architecture: str, tiling: Tiling, epilogue: str, weight: str) -> Any:
    """A linear kernel as the device would launch it, with a bias where it can have one."""
    kernel, inputs = (linear_few_rows if tiling.few else linear_many_rows), INPUTS[epilogue]
    pointer, dtype = NARROW[weight]
    narrow = "*fp16" if dtype == tl.float16 else "*bf16"
    pointers = {"x": narrow, "w": pointer, "out": narrow if epilogue == "gate" else "*fp32", "bias": "*fp32"}
    if weight == "int8":
        pointers["scale"] = "*fp32"
    if epilogue == "logits":
        pointers |= {"best": "*fp32", "best_at": "*i32"}
    if epilogue == "plain":
        pointers |= {"out_stats": "*i64", "residual": "*fp32", "next_weight": "*fp32", "scaled": narrow}
    constants = {
        "WIDTH": inputs, "INPUTS": padded(inputs), "PARTS": parts_of(inputs), "NORM": "", "EPILOGUE": epilogue,
        "ACTIVATION": "silu" if epilogue == "gate" else "", "STATS": "rms" if epilogue == "plain" else "",
        "ROPE": False, "STORE": False, "DTYPE": dtype, "WIDE": False, "ROWS": tiling.rows, "COLUMNS": tiling.columns,
        "AHEAD": tiling.ahead, "PREFETCH": tiling.prefetch, "PDL": architecture == "sm_90",
    }  # fmt: skip
    signature: dict[str, str] = {}
    known: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for place, name in enumerate(kernel.arg_names):
        if name in pointers or name in ("x_stride", "out_stride", "outputs", "capacity"):
            signature[name] = pointers.get(name, "i32")
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif name in ("rows_in_all", "head_dim", "heads", "kv_heads", "block_size", "norm_eps"):
            signature[name] = "fp32" if name == "norm_eps" else "i32"
        else:
            signature[name] = "constexpr"
            known[(place,)] = constants.get(name)
    options = {"num_warps": tiling.warps, "num_stages": tiling.stages, "enable_fp_fusion": False}
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return triton.compile(ASTSource(kernel, signature, known, attributes), target=target, options=options)


def kernels(architecture: str) -> Iterator[dict[str, Any]]:
    """Every epilogue with few and many rows, every type where its tiles differ."""
    for epilogue, inputs in INPUTS.items():
        for rows in ROWS:
            for weight in NARROW if epilogue == "plain" else ["bfloat16"]:
                tiling = choose_tiling(epilogue, rows, inputs, False, SHARED[architecture])
                made = compiled(architecture, tiling, epilogue, weight)
                code = made.asm["ttgir"]
                yield {
                    "architecture": architecture,
                    "epilogue": epilogue,
                    "rows": rows,
                    "weight": weight,
                    "shared": made.metadata.shared,
                    "most_shared": SHARED[architecture],
                    "products": len(_PRODUCT.findall(code)),
                    "products_wanted": padded(inputs) // (64 * parts_of(inputs)) if tiling.ahead else parts_of(inputs),
                    "chains_begin_with": beginnings(code),
                    "widths": sorted({int(width) for width in re.findall(r"kWidth = (\d+)", code)}),
                }


def beginnings(code: str) -> list[str]:
    """What products are added to that is neither zero, nor another product, nor what a loop carries."""
    products = {result for result, _ in _PRODUCT.findall(code)}
    others = {start for _, start in _PRODUCT.findall(code)} - products
    return sorted(start for start in others if not start.startswith(("%cst", "%arg")))


if __name__ == "__main__":
    for one in sys.argv[1:]:
        for kernel_ in kernels(one):
            print(json.dumps(kernel_), flush=True)
