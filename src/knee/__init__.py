"""knee, the LLM inference lab: which batch policy should I run, on this machine, with this model, and why?

The public names are imported when they are first used, so that `import knee` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from knee.engine.types import Request, SamplingParams, TokenEvent
    from knee.errors import KneeError, UserError
    from knee.llm import LLM

_HOMES = {
    "LLM": "knee.llm",
    "Request": "knee.engine.types",
    "SamplingParams": "knee.engine.types",
    "TokenEvent": "knee.engine.types",
    "KneeError": "knee.errors",
    "UserError": "knee.errors",
}

__all__ = ["LLM", "KneeError", "Request", "SamplingParams", "TokenEvent", "UserError", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'knee' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
