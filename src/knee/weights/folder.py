"""A Hugging Face model folder as a checkpoint: `config.json` beside safetensors. Code in it is never run.

What the architecture means is `models/`' affair; refused here is what no model could be loaded from: pickles, remote
code, quantized weights, missing or contradicting files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knee.errors import ModelLoadError
from knee.weights.checkpoint import Checkpoint
from knee.weights.safetensors import read_safetensors
from knee.weights.tensor import MappedTensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON_BYTES = 4 << 20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


def open_folder(folder: Path, name: str, source: str) -> Checkpoint:
    """Open a model folder. `ModelLoadError` if files are missing, damaged or of a kind that is not supported."""
    config = _read_config(folder)
    files, tensors = _read_tensors(folder)
    return Checkpoint(
        name=name,
        source=source,
        format="safetensors",
        files=files,
        config=config,
        tensors=_by_plain_name(folder, tensors),
        eos_token_ids=_eos_token_ids(folder, config),
        folder=folder,
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON file with an object in it, or `ModelLoadError`."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ModelLoadError(f"{path}: larger than {MAX_JSON_BYTES >> 20} MiB; this cannot be right")
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ModelLoadError(f"{path} is missing; a model folder needs config.json and {WEIGHTS}") from None
    except OSError as error:
        raise ModelLoadError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: no valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: a JSON object was expected")
    return value


def _read_config(folder: Path) -> dict[str, Any]:
    config = read_json_object(folder / "config.json")
    if "auto_map" in config:
        raise ModelLoadError(
            f"{folder / 'config.json'} asks for code from the model's folder (auto_map), which is never run; "
            "use a model of a supported architecture"
        )
    if config.get("quantization_config"):
        raise ModelLoadError(
            f"{folder / 'config.json'}: quantized safetensors are not supported; use the model's original weights "
            "(--dtype quantizes them) or a GGUF file"
        )
    return config


def _read_tensors(folder: Path) -> tuple[tuple[Path, ...], dict[str, MappedTensor]]:
    """The weights' files, and what is in them."""
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,), read_safetensors(folder / WEIGHTS)
    if (folder / INDEX).is_file():
        return _read_shards(folder)
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise ModelLoadError(
            f"{folder} holds its weights as a pickle ({pickles[0]}), which can run any code and is not read; "
            "convert it to safetensors"
        )
    raise ModelLoadError(f"{folder} holds no weights; put {WEIGHTS} there")


def _read_shards(folder: Path) -> tuple[tuple[Path, ...], dict[str, MappedTensor]]:
    weight_map = read_json_object(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelLoadError(f"{folder / INDEX}: weight_map is missing; it says which file holds which tensor")
    files = tuple(_shard(folder, file) for file in sorted(set(map(str, weight_map.values()))))
    shards = {file.name: read_safetensors(file) for file in files}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise ModelLoadError(f"{folder / INDEX} says that {file} holds {name[:60]!r}, but it does not")
    tensors = {name: tensor for shard in shards.values() for name, tensor in shard.items()}
    if len(tensors) < sum(map(len, shards.values())):
        raise ModelLoadError(f"{folder}: the same tensor is in two of the files {', '.join(sorted(shards))}")
    return files, tensors


def _shard(folder: Path, file: str) -> Path:
    """A shard lies in the folder itself: an index must not point elsewhere."""
    if Path(file).name != file or not file.endswith(".safetensors"):
        raise ModelLoadError(f"{folder / INDEX}: {file[:60]!r} is no name of a safetensors file")
    if not (folder / file).is_file():
        raise ModelLoadError(f"{folder / file} is missing; {INDEX} lists it")
    return folder / file


def _by_plain_name(folder: Path, tensors: Mapping[str, MappedTensor]) -> dict[str, MappedTensor]:
    """GPT-2 checkpoints come with and without a prefix, but not with both."""
    plain: dict[str, MappedTensor] = {}
    for name, tensor in tensors.items():
        short = name.removeprefix("transformer.")
        if short in plain:
            raise ModelLoadError(f"{folder} holds {short[:60]!r} twice, with and without 'transformer.' before it")
        plain[short] = tensor
    return plain


def _eos_token_ids(folder: Path, config: Mapping[str, Any]) -> frozenset[int]:
    """`generation_config.json` knows best, as in transformers; `config.json` where there is none."""
    generation = folder / "generation_config.json"
    settings = read_json_object(generation) if generation.is_file() else {}
    found = settings.get("eos_token_id", config.get("eos_token_id"))
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(item) is int for item in ids):
        raise ModelLoadError(f"{folder}: eos_token_id is {str(found)[:60]}; a token id or a list of them was expected")
    return frozenset(ids)
