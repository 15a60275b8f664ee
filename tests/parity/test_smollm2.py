"""The real model: knee's reading of the GGUF file, its tokenizer and its tokens, against transformers' own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the oracle is not installed (pip install knee[oracle])")

from transformers import AutoModelForCausalLM

from knee import LLM, SamplingParams
from knee.devices import Span, Want
from tests.parity.oracle import greedy, logits

pytestmark = [pytest.mark.oracle, pytest.mark.model, pytest.mark.filterwarnings("ignore")]

NEW_TOKENS = 128
PROMPTS = [
    "Q: Explain why batching improves GPU utilization.\nA:",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
]
CHAT = [{"role": "user", "content": "What is the capital of France, and why is it famous?"}]


@dataclass(frozen=True)
class Pair:
    llms: dict[str, LLM]
    oracle: Any

    def prompts(self) -> list[list[int]]:
        llm = self.llms["reference"]
        assert llm.tokenizer
        return [llm.encode(text) for text in [*PROMPTS, llm.tokenizer.apply_chat_template(CHAT)]]


@pytest.fixture(scope="module")
def pair(smollm2_path: Path) -> Pair:
    oracle = AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    ).eval()
    llms = {device: LLM.load("smollm2-135m", device=device, dtype="float32") for device in ("reference", "cpu")}
    return Pair(llms | {"auto": LLM.load("smollm2-135m")}, oracle)


@pytest.mark.parametrize("index", range(4))
def test_128_greedy_tokens_and_all_logits_are_those_of_transformers(pair: Pair, index: int) -> None:
    prompt = pair.prompts()[index]
    expected = greedy(pair.oracle, prompt, NEW_TOKENS)
    tokens = prompt + expected
    oracle_logits = logits(pair.oracle, tokens)
    params = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
    for name, llm in pair.llms.items():
        [request] = llm.generate([prompt], params)
        assert request.output == expected, name
        if name == "auto":  # it may round, as long as it chooses the same tokens
            continue
        [output] = llm.device.execute([Span(tokens, 0, (), Want.ALL_LOGITS)])
        assert output.logits is not None
        assert np.abs(output.logits - oracle_logits).max() < 1e-3, name
