"""A model, ready to use: files, program, device and tokenizer in one object.

from knee import LLM, SamplingParams

llm = LLM.load("smollm2-135m")
[answer] = llm.generate(["The capital of France is"], SamplingParams(max_new_tokens=16))
print(answer.text)
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from knee.devices import Device, choose_device
from knee.engine.engine import Engine
from knee.engine.kv import KVManager
from knee.engine.policies import Policy, make_policy
from knee.engine.types import Request, SamplingParams
from knee.errors import OutOfMemory, UserError
from knee.models import build_program
from knee.program import Program
from knee.weights.checkpoint import Checkpoint
from knee.weights.load import available_memory, check_memory, find_weights, open_checkpoint
from knee.weights.tokenizer import Tokenizer, load_tokenizer

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True)
class LoadTimes:
    """Milliseconds that each part of loading took."""

    model_ms: float
    tokenizer_ms: float


@dataclass(frozen=True)
class LLM:
    """A loaded model. `tokenizer` is None where the model's folder has none: then prompts are token ids."""

    checkpoint: Checkpoint
    program: Program
    device: Device
    tokenizer: Tokenizer | None
    load_times: LoadTimes

    @classmethod
    def load(
        cls, model: str = DEFAULT_MODEL, device: str = "auto", dtype: str = "auto", threads: int | None = None
    ) -> LLM:
        """Open, check and load a model.

        `model` is an alias, a hub id, a folder or a `.gguf` file; see the contract of the command line for the rest.
        Raises `ModelLoadError`, `OutOfMemory`, `NumericsError` or `DownloadError`.
        """
        chosen = choose_device(device, dtype, threads)
        started = time.perf_counter()
        checkpoint = open_checkpoint(model)
        program = build_program(checkpoint.config)
        weights = find_weights(program, checkpoint)
        check_memory(chosen.plan(program, weights, dtype))
        loaded = chosen(program, weights, dtype, threads)
        model_done = time.perf_counter()
        tokenizer = load_tokenizer(checkpoint)
        tokenizer_done = time.perf_counter()
        times = LoadTimes((model_done - started) * 1e3, (tokenizer_done - model_done) * 1e3)
        return cls(checkpoint, program, loaded, tokenizer, times)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text. Raises `UserError` if the model came without a tokenizer."""
        if self.tokenizer is None:
            raise UserError(
                f"{self.checkpoint.source} has no tokenizer.json: give token ids (--prompt-ids 1,2,3) or add the file"
            )
        return self.tokenizer.encode(text)

    def engine(
        self,
        policy: Policy,
        *,
        longest: int | None = None,
        kv_cache: bool = True,
        block_size: int = DEFAULT_BLOCK_SIZE,
        num_blocks: int | None = None,
    ) -> Engine:
        """An engine on this model, with a KV pool of its own (an earlier engine's pool is gone).

        `longest` is the most tokens (prompt and output) of any request to come, by default the model's context; the
        pool is made so that `policy.max_batch_size` such requests fit, unless `num_blocks` says otherwise.
        """
        return Engine(
            self.device,
            policy,
            self._pool(policy, longest, block_size, num_blocks) if kv_cache else KVManager.off(),
            self.tokenizer,
            self.checkpoint.eos_token_ids,
        )

    def _pool(self, policy: Policy, longest: int | None, block_size: int, num_blocks: int | None) -> KVManager:
        if block_size < 1:
            raise UserError(f"the KV block size is {block_size}: it must be at least 1")
        if num_blocks is None:
            tokens = min(longest or self.program.positions, self.program.positions)
            num_blocks = policy.max_batch_size * -(-tokens // block_size)
        needed = num_blocks * block_size * self.device.kv_bytes_per_token
        if needed > (there := available_memory()):
            raise OutOfMemory(
                f"a KV pool of {num_blocks} blocks x {block_size} tokens needs {needed / 2**30:.2f} GiB and "
                f"{there / 2**30:.2f} GiB are free: use a smaller batch size, shorter requests or fewer blocks"
            )
        self.device.allocate_kv(num_blocks, block_size)
        return KVManager(num_blocks, block_size)

    def generate(
        self,
        prompts: Sequence[str | Sequence[int]],
        params: SamplingParams | None = None,
        policy: str = "continuous",
        max_batch_size: int = 8,
        kv_cache: bool = True,
    ) -> list[Request]:
        """Complete prompts (texts or token ids), in their order; all of them are checked before work starts."""
        params = params or SamplingParams()
        ids = [self.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
        longest = max((len(prompt) for prompt in ids), default=0) + params.max_new_tokens
        size = 1 if policy == "single" else max_batch_size
        engine = self.engine(make_policy(policy, max_batch_size=size), longest=longest, kv_cache=kv_cache)
        requests = [engine.submit(prompt, params) for prompt in ids]
        for _ in engine.run():
            pass
        return requests
