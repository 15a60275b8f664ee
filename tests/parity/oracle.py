"""Random models in transformers, written to disk as knee reads them, and what transformers says they generate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class RandomModel:
    """A model type of transformers with config values, and the seed of its weights."""

    name: str
    model_type: str
    values: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def build(self) -> PreTrainedModel:
        """The model with weights large enough that its logits differ clearly, biases and norms included."""
        torch.manual_seed(self.seed)
        config = AutoConfig.for_model(self.model_type, **self.values, eos_token_id=None, bos_token_id=None)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                scale = 0.3 if name.endswith("bias") else 1.0 if "norm" in name or ".ln_" in name else 0.0
                if scale:
                    parameter.add_(torch.randn_like(parameter) * 0.3 * scale)
                else:
                    fan_in = parameter.shape[0] if self.model_type == "gpt2" else parameter.shape[-1]
                    parameter.copy_(torch.randn_like(parameter) * (1.2 / fan_in**0.5))
        return model

    def save(self, folder: Path) -> PreTrainedModel:
        """Write the folder, return the model."""
        model = self.build()
        model.save_pretrained(folder)
        return model


def greedy(model: PreTrainedModel, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """What transformers generates, greedily, without stopping."""
    with torch.no_grad():
        out = model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
    return [int(token) for token in out[0, len(prompt) :]]


def logits(model: PreTrainedModel, tokens: Sequence[int]) -> NDArray[np.float32]:
    """(tokens, vocab): what transformers computes at every position."""
    with torch.no_grad():
        out: NDArray[np.float32] = model(torch.tensor([list(tokens)])).logits[0].numpy()
    return out
