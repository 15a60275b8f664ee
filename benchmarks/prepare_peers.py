"""Other engines' models, made from the GGUF file that knee runs, so that all of them compute with the same weights.

    python benchmarks/prepare_peers.py gguf   MODEL.gguf OUT.gguf --type q8_0     # needs llama-cpp-python
    python benchmarks/prepare_peers.py folder MODEL.gguf OUT                      # needs transformers, accelerate, gguf

Run it with the python that has what the command needs; it uses nothing of knee. docs/performance.md lists every
command, the export of the folder to OpenVINO among them.
"""

from __future__ import annotations

import argparse
import copy
import sys
from pathlib import Path

GGUF_TYPES = ("q4_0", "q4_1", "q8_0", "bf16", "f16")


def to_gguf(source: Path, target: Path, kind: str) -> None:
    """The same model with its matrices in another storage type.

    Wider types keep every weight of a quantized source as it is, up to their rounding; the narrower ones round anew.
    """
    import llama_cpp

    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind.upper()}")
    settings.allow_requantize = True
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), settings):
        sys.exit(f"{source} could not be written as {kind}")


def to_folder(source: Path, target: Path) -> None:
    """config.json, safetensors in float32 and tokenizer.json."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"gguf_file": source.name}
    loaded = AutoModelForCausalLM.from_pretrained(source.parent, dtype=torch.float32, **where)
    config = copy.deepcopy(loaded.config)
    config.__dict__.pop("quantization_config", None)
    # A model that came from GGUF counts as quantized and is not saved, though its weights are float32: save a twin.
    twin = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    twin.load_state_dict(loaded.state_dict())
    twin.tie_weights()
    twin.save_pretrained(target)
    AutoTokenizer.from_pretrained(source.parent, **where).save_pretrained(target)


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="prepare_peers.py", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    gguf = commands.add_parser("gguf", help="another storage type, by llama.cpp")
    gguf.add_argument("--type", choices=GGUF_TYPES, required=True, dest="kind")
    folder = commands.add_parser("folder", help="a Hugging Face folder in float32, by transformers")
    for command in (gguf, folder):
        command.add_argument("source", type=Path)
        command.add_argument("target", type=Path)
    options = parser.parse_args()
    options.target.parent.mkdir(parents=True, exist_ok=True)
    if options.command == "gguf":
        to_gguf(options.source, options.target, options.kind)
    else:
        to_folder(options.source, options.target)


if __name__ == "__main__":
    main()
