"""One request at a time: the baseline that every other policy is measured against."""

from __future__ import annotations

from knee.engine.policies.base import Admission, Policy, View
from knee.errors import UserError


class Single(Policy):
    """The next request starts when the one before it is done. Raises `UserError` for a batch size above 1."""

    name = "single"

    def __init__(self, max_batch_size: int = 1, max_batched_tokens: int = 512) -> None:
        super().__init__(max_batch_size, max_batched_tokens)
        if max_batch_size != 1:
            raise UserError(f"the batch size is {max_batch_size}: policy single runs one request at a time")

    def admit(self, view: View) -> Admission:
        return Admission(0 if view.running else 1)
