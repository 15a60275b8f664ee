"""Compiles the cuda device's kernels for a GPU that need not be there, and prints what became of their products.

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

from knee.devices.cuda.kernels.attention import SPLIT, attend_many, attend_one
from knee.devices.cuda.kernels.linear import linear_few_rows, linear_many_rows
from knee.devices.cuda.tiling import (
    ATTEND_MANY,
    ATTEND_ONE,
    TILE,
    Tiling,
    attend_stages,
    choose_tiling,
    early_warps,
    padded,
    parts_of,
)

SHARED = {"sm_90": 225 * 1024, "sm_80": 156 * 1024}  # bytes a program may have
_INTEGERS = {
    *("rows_in_all", "x_stride", "out_stride", "outputs", "capacity", "heads", "kv_heads", "head_dim", "block_size"),
    *("q_stride", "table_width", "splits"),
}
NARROW = {"bfloat16": ("*bf16", tl.bfloat16), "float16": ("*fp16", tl.float16), "int8": ("*i8", tl.bfloat16)}
INPUTS = {"plain": 1536, "gate": 576, "write_kv": 576, "logits": 50}
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
    if epilogue == "write_kv":
        pointers |= dict.fromkeys(("out", "keys", "values"), narrow) | dict.fromkeys(("positions", "slots"), "*i32")
        pointers |= dict.fromkeys(("cos", "sin"), "*fp32") | {"stats": "*i64"}
    if epilogue == "plain":
        pointers |= {"out_stats": "*i64", "residual": "*fp32", "next_weight": "*fp32", "scaled": narrow}
    constants = {
        "WIDTH": inputs, "INPUTS": padded(inputs), "PARTS": parts_of(inputs), "EPILOGUE": epilogue,
        "NORM": "scaled" if epilogue == "write_kv" else "", "ACTIVATION": "silu" if epilogue == "gate" else "",
        "STATS": "rms" if epilogue == "plain" else "", "ROPE": epilogue == "write_kv", "STORE": False, "DTYPE": dtype,
        "WIDE": False, "ROWS": tiling.rows, "COLUMNS": tiling.columns, "AHEAD": tiling.ahead,
        "PDL": architecture == "sm_90",
    }  # fmt: skip
    multiples = {"x_stride", "out_stride", "outputs", "capacity"}
    return build(architecture, kernel, pointers, multiples, "norm_eps", constants, tiling.warps, tiling.stages)


def attention(architecture: str, name: str, dim: int) -> Any:
    """A kernel of the attention: "one", "early" (one new token, the cache read early) or "many"."""
    pointers = dict.fromkeys(("q", "out", "keys", "values"), "*bf16")
    pointers |= dict.fromkeys(("decode_rows", "contexts", "tables", "counters"), "*i32")
    pointers |= dict.fromkeys(("tile_rows", "tile_lengths", "tile_positions", "tile_spans"), "*i32")
    pointers |= {"partial": "*fp32", "partial_stats": "*fp32"}
    constants = {
        "GROUP": 4, "GROUP_PADDED": 16, "DIM": dim, "TILE": TILE, "SPLIT": SPLIT, "WHOLE_TILES": True, "ROWS": 64,
        "EARLY": name == "early", "DTYPE": tl.bfloat16, "WIDE": False, "PDL": architecture == "sm_90",
    }  # fmt: skip
    warps, stages = ATTEND_MANY if name == "many" else ATTEND_ONE
    stages = attend_stages(stages, dim, 2, SHARED[architecture])
    if name == "early":
        warps, stages = early_warps(SPLIT, dim, 2), 1
    kernel = attend_many if name == "many" else attend_one
    multiples = {"q_stride", "out_stride", "head_dim", "block_size"}
    return build(architecture, kernel, pointers, multiples, "scale", constants, warps, stages)


def build(
    architecture: str, kernel: Any, pointers: dict[str, str], multiples: set[str], number: str,
    constants: dict[str, Any], warps: int, stages: int,
) -> Any:  # fmt: skip
    """`multiples` are arguments that 16 divides, `number` is one that is no integer."""
    signature: dict[str, str] = {}
    known: dict[tuple[int], Any] = {}
    attributes: dict[tuple[int], Any] = {}
    for place, (name, parameter) in enumerate(zip(kernel.arg_names, kernel.params, strict=True)):
        if name in constants and parameter.is_constexpr:
            signature[name], known[(place,)] = "constexpr", constants[name]
        elif name in pointers or name in multiples:
            signature[name], attributes[(place,)] = pointers.get(name, "i32"), [["tt.divisibility", 16]]
        elif name in _INTEGERS or name == number:
            signature[name] = "i32" if name in _INTEGERS else "fp32"
        else:
            signature[name], known[(place,)] = "constexpr", None
    options = {"num_warps": warps, "num_stages": stages, "enable_fp_fusion": False}
    target = GPUTarget("cuda", int(architecture.removeprefix("sm_")), 32)
    return triton.compile(ASTSource(kernel, signature, known, attributes), target=target, options=options)


def linears(architecture: str) -> Iterator[dict[str, Any]]:
    """Every epilogue with few and many rows, every type where its tiles differ."""
    for epilogue, inputs in INPUTS.items():
        for rows in ROWS:
            for weight in NARROW if epilogue == "plain" else ["bfloat16"]:
                tiling = choose_tiling(epilogue, rows, inputs, False, SHARED[architecture])
                made = compiled(architecture, tiling, epilogue, weight)
                code = made.asm["ttgir"]
                yield {
                    "kernel": f"{epilogue} {rows} {weight}",
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


def attentions(architecture: str) -> Iterator[dict[str, Any]]:
    """Every kernel of the attention, with heads of several sizes."""
    for name in ("one", "early", "many"):
        for dim in (64, 128):
            made = attention(architecture, name, dim)
            yield {
                "kernel": f"attend {name} {dim}",
                "shared": made.metadata.shared,
                "most_shared": SHARED[architecture],
            }


if __name__ == "__main__":
    for one in sys.argv[1:]:
        for kernel_ in (*linears(one), *attentions(one)):
            print(json.dumps(kernel_), flush=True)
