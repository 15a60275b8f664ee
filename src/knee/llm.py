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
        cls,
        model: str = DEFAULT_MODEL,
        device: str = "auto",
        dtype: str = "auto",
        threads: int | None = None,
        batch_invariant: bool = True,
    ) -> LLM:
        """Open, check and load a model.

        `model` is an alias, a hub id, a folder or a `.gguf` file; see the contract of the command line for the rest.
        Raises `ModelLoadError`, `OutOfMemory`, `NumericsError` or `DownloadError`.
        """
        chosen = choose_device(device, dtype, threads)
        if not (batch_invariant or chosen.can_vary):
            raise UserError(f"device {chosen.name} has nothing to gain from --batch-invariant off: leave it out")
        started = time.perf_counter()
        checkpoint = open_checkpoint(model)
        program = build_program(checkpoint.config)
        weights = find_weights(program, checkpoint)
        check_memory(chosen.plan(program, weights, dtype), chosen.free_memory())
        loaded = chosen(program, weights, dtype, threads)
        if not batch_invariant:
            loaded.batch_invariant = False
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
        block_size: int | None = None,
        num_blocks: int | None = None,
        overlap: bool | None = None,
    ) -> Engine:
        """An engine on this model, with a KV pool of its own (an earlier engine's pool is gone).

        `longest` is the most tokens (prompt and output) of any request to come, by default the model's context; the
        pool is made so that `policy.max_batch_size` such requests fit, unless `num_blocks` says otherwise. In a
        device's own memory it takes what is left, if that is less and one such request fits. `block_size` None is
        what suits the device, `overlap` None: where the device can.
        """
        return Engine(
            self.device,
            policy,
            self._pool(policy, longest, block_size, num_blocks) if kv_cache else KVManager.off(),
            self.tokenizer,
            self.checkpoint.eos_token_ids,
            overlap=overlap is not False,
        )

    def _pool(self, policy: Policy, longest: int | None, block_size: int | None, num_blocks: int | None) -> KVManager:
        if block_size is None:
            block_size = self.device.block_size_default
        if block_size < 1:
            raise UserError(f"the KV block size is {block_size}: it must be at least 1")
        tokens = min(longest or self.program.positions, self.program.positions)
        one = -(-tokens // block_size)
        wanted = policy.max_batch_size * one if num_blocks is None else num_blocks
        block_bytes = block_size * self.device.kv_bytes_per_token
        there, on_device = self._memory_for_pool(block_size)
        fitting = there // block_bytes
        if on_device and num_blocks is None and one <= fitting < wanted:
            wanted = fitting
        if wanted > fitting:
            raise OutOfMemory(
                f"a KV pool of {wanted} blocks x {block_size} tokens needs {wanted * block_bytes / 2**30:.2f} GiB and "
                f"{there / 2**30:.2f} GiB{' of the device' if on_device else ''} are free: use a smaller batch size, "
                "shorter requests or fewer blocks"
            )
        self.device.allocate_kv(wanted, block_size)
        return KVManager(wanted, block_size)

    def _memory_for_pool(self, block_size: int) -> tuple[int, bool]:
        """Bytes that the KV pool may take, and whether they are in the device's own memory."""
        if type(self.device).free_memory() is None:
            return available_memory(), False
        self.device.allocate_kv(0, block_size)  # an earlier pool makes room first: it may have taken all there was
        return type(self.device).free_memory() or 0, True

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
        budget = max(size, self.device.token_budget_default)
        engine = self.engine(make_policy(policy, size, None, budget), longest=longest, kv_cache=kv_cache)
        requests = [engine.submit(prompt, params) for prompt in ids]
        for _ in engine.run():
            pass
        return requests
