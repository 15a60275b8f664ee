"""Rotary position embedding: from a model's config to the frequency at which each pair of dimensions turns.

Su et al. 2021; linear scaling is Chen et al. 2023; the llama3 rule is the one of the Llama 3.1 model card: slow
frequencies are divided by `factor`, fast ones kept, those between interpolated.
"""

from __future__ import annotations

import math

from knee.errors import ModelLoadError
from knee.models.config import Config
from knee.program import Rope


def read_rope(config: Config, head_dim: int) -> Rope:
    """Inverse frequencies of a head of `head_dim` dimensions.

    Reads `rope_theta` with `rope_scaling`, or both from `rope_parameters`, as newer configs write them; where both
    sections are filled, the first counts, as in transformers.
    """
    sections = [section for key in ("rope_scaling", "rope_parameters") if (section := config.section(key)).raw]
    scaling = sections[0] if sections else Config({})
    theta = next((found for found in sections if found.has("rope_theta")), config)
    base = theta.number("rope_theta", default=10000.0)
    scaling.refuse("partial_rotary_factor", 1.0)
    frequencies = [base ** (-2 * i / head_dim) for i in range(head_dim // 2)]
    kind = "rope_type" if scaling.has("rope_type") else "type"
    rule = scaling.choice(kind, "default", _RULES)
    return Rope(tuple(rule(scaling, frequencies)))


def _default(_scaling: Config, frequencies: list[float]) -> list[float]:
    return frequencies


def _linear(scaling: Config, frequencies: list[float]) -> list[float]:
    factor = scaling.number("factor")
    return [frequency / factor for frequency in frequencies]


def _llama3(scaling: Config, frequencies: list[float]) -> list[float]:
    factor = scaling.number("factor")
    low, high = scaling.number("low_freq_factor"), scaling.number("high_freq_factor")
    if not low < high:
        raise ModelLoadError(f"config.json: low_freq_factor {low} must be below high_freq_factor {high}")
    context = scaling.number("original_max_position_embeddings")

    def scaled(frequency: float) -> float:
        turns = context * frequency / (2 * math.pi)  # in the original context
        kept = min(1.0, max(0.0, (turns - low) / (high - low)))
        return frequency * (kept + (1 - kept) / factor)

    return [scaled(frequency) for frequency in frequencies]


def _factors(scaling: Config, frequencies: list[float]) -> list[float]:
    """A divisor for each frequency, as GGUF files carry them."""
    factors = scaling.raw.get("factors")
    if not isinstance(factors, list) or len(factors) != len(frequencies):
        raise ModelLoadError(f"the rope needs {len(frequencies)} frequency factors")
    if not all(isinstance(factor, float) and 0 < factor < math.inf for factor in factors):
        raise ModelLoadError("a frequency factor of the rope is not a positive number")
    return [frequency / factor for frequency, factor in zip(frequencies, factors, strict=True)]


_RULES = {"default": _default, "linear": _linear, "llama3": _llama3, "factors": _factors}
