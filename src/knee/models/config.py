"""Reading a model's `config.json` strictly: a missing or odd value is an error that names the key, never a guess."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from knee.errors import ModelLoadError
from knee.program import Activation

T = TypeVar("T")

# Far above any model's numbers, and low enough that a damaged config cannot make us build for ever.
_LARGEST = 2**31
_MOST_LAYERS = 4096

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True, slots=True)
class Config:
    """Typed access to the keys of a `config.json`."""

    raw: Mapping[str, Any]

    def has(self, key: str) -> bool:
        """Whether the key is there and not null."""
        return self.raw.get(key) is not None

    def integer(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _LARGEST:
            raise ModelLoadError(f"config.json: {key} is {value!r}: it must be a positive whole number")
        return value

    def layers(self, key: str) -> int:
        """The number of layers."""
        value = self.integer(key)
        if value > _MOST_LAYERS:
            raise ModelLoadError(f"config.json: {key} is {value}: knee builds at most {_MOST_LAYERS} layers")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive finite number."""
        value = self._value(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise ModelLoadError(f"config.json: {key} is {value!r}: it must be a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise ModelLoadError(f"config.json: {key} is {value!r}: it must be true or false")
        return value

    def section(self, key: str) -> Config:
        """A nested object, empty where it is missing or null."""
        value = self.raw.get(key)
        if value is not None and not isinstance(value, Mapping):
            raise ModelLoadError(f"config.json: {key} is {value!r}: it must be an object")
        return Config(value or {})

    def activation(self, key: str, default: str) -> Activation:
        """An activation function by its Hugging Face name."""
        return self.choice(key, default, _ACTIVATIONS)

    def choice(self, key: str, default: str, known: Mapping[str, T]) -> T:
        """One of some known names."""
        value = self._value(key, default)
        if not isinstance(value, str) or value not in known:
            raise ModelLoadError(
                f"config.json: {key} {value!r} is not supported; knee knows {', '.join(sorted(known))}"
            )
        return known[value]

    def refuse(self, key: str, supported: Any) -> None:
        """Refuse a model that switches on something knee does not implement."""
        value = self.raw.get(key)
        if value is not None and value != supported:
            raise ModelLoadError(f"config.json: {key} is {value!r}: knee supports only {supported!r}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.raw.get(key)
        if value is None:
            value = default
        if value is None:
            raise ModelLoadError(f"config.json has no {key}")
        return value


def architecture_of(raw: Mapping[str, Any], known: Sequence[str]) -> str:
    """The model's architecture, if it is one of the known."""
    found = raw.get("architectures")
    name = found[0] if isinstance(found, Sequence) and not isinstance(found, str) and found else found
    if name not in known:
        raise ModelLoadError(f"architecture {name!r} is not supported; knee knows {', '.join(sorted(known))}")
    return str(name)
