"""Dynamic batching: static batching that loses patience (Triton Inference Server's max_queue_delay)."""

from __future__ import annotations

import math

from knee.engine.policies.base import Admission, View
from knee.engine.policies.static import Static
from knee.errors import UserError


class Dynamic(Static):
    """As static, but a batch also starts `max_wait_ms` milliseconds after its first request was due.

    Raises `UserError` for a window that is negative or not finite.
    """

    name = "dynamic"

    def __init__(self, max_batch_size: int = 1, max_wait_ms: float = 0.0, max_batched_tokens: int = 512) -> None:
        super().__init__(max_batch_size, max_batched_tokens)
        if not 0 <= max_wait_ms < math.inf:
            raise UserError(f"the wait window is {max_wait_ms} ms: it must be a finite number, at least 0")
        self.max_wait_ms = max_wait_ms

    def admit(self, view: View) -> Admission:
        admission = super().admit(view)
        if admission.count or view.running or not view.waiting:
            return admission
        deadline = view.waiting[0].scheduled_at + self.max_wait_ms / 1000
        if view.now >= deadline:
            return Admission(self.max_batch_size)
        return Admission(0, wake_at=deadline)
