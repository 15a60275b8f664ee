"""Block tables and the free list of the paged KV cache (PagedAttention, Kwon et al. 2023).

Integers only: which block belongs to which request. The keys and values themselves are the device's; it never sees
the free list, and this file never sees a tensor. One block as long as the context is the contiguous cache.

| state                   | owner                                                     |
|-------------------------|-----------------------------------------------------------|
| free blocks             | `KVManager`                                               |
| `Request.block_table`   | grown by `allocate`, emptied by `release`, read by others |
| `Request.num_cached`    | advanced by the engine with a step, zeroed by `release`   |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain

from knee.engine.types import Request
from knee.errors import KneeError, UserError


class KVManager:
    """A pool of `num_blocks` blocks of `block_size` tokens; `KVManager.off()` is the one that caches nothing.

    Every operation takes constant time a block. Raises `UserError` for a pool of impossible size.
    """

    def __init__(self, num_blocks: int, block_size: int, *, enabled: bool = True) -> None:
        if num_blocks < 0:
            raise UserError(f"the KV pool has {num_blocks} blocks: it must have at least 0")
        if block_size < 1:
            raise UserError(f"the KV block size is {block_size} tokens: it must be at least 1")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.enabled = enabled
        # A stack: the block given back last is the one most likely still in the processor's caches.
        self._free = list(range(num_blocks - 1, -1, -1))

    @classmethod
    def off(cls) -> KVManager:
        """The KV cache switched off: nobody needs a block, every request fits."""
        return cls(num_blocks=0, block_size=1, enabled=False)

    @property
    def free_blocks(self) -> int:
        """Blocks that nobody owns."""
        return len(self._free)

    @property
    def used_blocks(self) -> int:
        """Blocks that requests own."""
        return self.num_blocks - len(self._free)

    def can_ever_hold(self, num_tokens: int) -> bool:
        """Whether a request of `num_tokens` tokens fits when it has the pool for itself."""
        return not self.enabled or num_tokens <= self.num_blocks * self.block_size

    def blocks_needed(self, request: Request, num_tokens: int) -> int:
        """Blocks to add to the request's table before its next `num_tokens` tokens can run."""
        if not self.enabled:
            return 0
        blocks = -(-(request.num_cached + num_tokens) // self.block_size)
        missing = blocks - len(request.block_table)
        return missing if missing > 0 else 0

    def allocate(self, request: Request, num_tokens: int) -> None:
        """Grow the request's table so that its next `num_tokens` tokens fit; all or nothing.

        Raises `KneeError` if the pool runs dry: the plan that asked for it did not count.
        """
        needed = self.blocks_needed(request, num_tokens)
        if needed > len(self._free):
            raise KneeError(f"request {request.id} needs {needed} KV blocks and {len(self._free)} are free")
        request.block_table.extend(self._free.pop() for _ in range(needed))

    def release(self, request: Request) -> None:
        """Take all blocks of the request back; its whole prefix has to run again."""
        self._free.extend(reversed(request.block_table))
        request.block_table.clear()
        request.num_cached = 0

    def check_integrity(self, live_requests: Iterable[Request]) -> None:
        """Raise `KneeError` unless every block is free or owned once, and every table holds what is cached.

        `live_requests` are all requests that may own blocks.
        """
        live = list(live_requests)
        holders = Counter(chain(self._free, *(request.block_table for request in live)))
        for block in range(self.num_blocks):
            if holders[block] != 1:
                fate = "lost" if not holders[block] else "held more than once"
                raise KneeError(f"KV block {block} is {fate}")
        if len(holders) > self.num_blocks:
            raise KneeError(f"KV blocks {sorted(holders)[self.num_blocks :]} do not exist")
        for request in live:
            if request.num_cached > len(request.block_table) * self.block_size:
                raise KneeError(
                    f"request {request.id} has {request.num_cached} tokens cached: more than its blocks hold"
                )
