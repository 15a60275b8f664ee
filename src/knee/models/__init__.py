"""The models that knee knows: a config in, a `Program` out. One file a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from knee.models import gpt2, llama
from knee.models.config import architecture_of
from knee.program import Program

_BUILDERS: dict[str, Callable[[str, Mapping[str, Any]], Program]] = {
    **dict.fromkeys(llama.ARCHITECTURES, llama.build),
    **dict.fromkeys(gpt2.ARCHITECTURES, gpt2.build),
}

ARCHITECTURES = tuple(sorted(_BUILDERS))


def build_program(config: Mapping[str, Any]) -> Program:
    """The program of the model that a `config.json` describes. Raises `ModelLoadError`."""
    architecture = architecture_of(config, ARCHITECTURES)
    return _BUILDERS[architecture](architecture, config)
