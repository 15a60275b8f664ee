"""The batch policies by name."""

from __future__ import annotations

from knee.engine.policies.base import Policy
from knee.engine.policies.continuous import Continuous
from knee.engine.policies.dynamic import Dynamic
from knee.engine.policies.single import Single
from knee.engine.policies.static import Static
from knee.errors import UserError

__all__ = ["POLICIES", "Continuous", "Dynamic", "Policy", "Single", "Static", "make_policy"]

POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Single, Static, Dynamic, Continuous)}


def make_policy(
    name: str, max_batch_size: int = 1, max_wait_ms: float | None = None, max_batched_tokens: int = 512
) -> Policy:
    """The policy of that name. `max_wait_ms` None means: not given; only dynamic takes one.

    Raises `UserError` for an unknown name, a bad value, or a window for a policy that has none.
    """
    policy = POLICIES.get(name)
    if policy is None:
        raise UserError(f"unknown batch policy {name!r}: choose one of {', '.join(POLICIES)}")
    if max_wait_ms is None:
        return policy(max_batch_size, max_batched_tokens=max_batched_tokens)
    if issubclass(policy, Dynamic):
        return policy(max_batch_size, max_wait_ms, max_batched_tokens)
    raise UserError(f"policy {name} has no wait window: leave max_wait_ms out, or choose dynamic")
