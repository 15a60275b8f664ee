"""A model's files in one form, whatever the format: a config with the keys of `config.json`, and named tensors.

The names are those of Hugging Face checkpoints (`model.layers.0.self_attn.q_proj.weight`; GPT-2 without the prefix
`transformer.`), also for GGUF files. Nothing is read until it is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from knee.weights.cache import sha256_of
from knee.weights.tensor import MappedTensor


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk, opened and checked but not read."""

    name: str  # what a person calls it: "smollm2-135m"
    source: str  # where it came from: a path, a hub id
    format: str  # "gguf" or "safetensors"
    files: tuple[Path, ...]  # the weights' files
    config: Mapping[str, Any]  # keys of config.json
    tensors: Mapping[str, MappedTensor]  # shapes as in Hugging Face checkpoints: (outputs, inputs) for a linear layer
    eos_token_ids: frozenset[int]
    folder: Path | None  # of a Hugging Face model; None for a GGUF file
    gguf_tokenizer: Mapping[str, Any] | None = None  # the `tokenizer.*` metadata of a GGUF file

    def sha256(self) -> str:
        """Hash over the weights' file (of several files: over their names and hashes)."""
        digests = [sha256_of(file) for file in self.files]
        if len(digests) == 1:
            return digests[0]
        lines = [f"{digest}  {file.name}\n" for file, digest in zip(self.files, digests, strict=True)]
        return hashlib.sha256("".join(lines).encode()).hexdigest()
