"""Laws of the KV manager: no block is lost, none is owned twice, all come back."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from knee.engine.kv import KVManager
from knee.engine.types import Request
from knee.errors import KneeError, UserError
from tests.engine.fake_engine import make_request


class KVMachine(RuleBasedStateMachine):
    """Requests come, grow and leave in any order."""

    @initialize(num_blocks=st.integers(0, 20), block_size=st.integers(1, 9))
    def start(self, num_blocks: int, block_size: int) -> None:
        self.kv = KVManager(num_blocks, block_size)
        self.requests: list[Request] = []

    @rule(prompt=st.integers(1, 40))
    def submit(self, prompt: int) -> None:
        self.requests.append(make_request(len(self.requests), prompt))

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def grow(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        num_tokens = data.draw(st.integers(0, 40))
        needed, free = self.kv.blocks_needed(request, num_tokens), self.kv.free_blocks
        if needed > free:
            before = list(request.block_table)
            with pytest.raises(KneeError, match="KV blocks"):
                self.kv.allocate(request, num_tokens)
            assert (request.block_table, self.kv.free_blocks) == (before, free)
        else:
            self.kv.allocate(request, num_tokens)
            request.num_cached += num_tokens
            assert self.kv.free_blocks == free - needed
            assert len(request.block_table) * self.kv.block_size >= request.num_cached

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        free = self.kv.free_blocks + len(request.block_table)
        self.kv.release(request)
        assert (request.block_table, request.num_cached, self.kv.free_blocks) == ([], 0, free)

    @invariant()
    def no_block_is_lost_or_owned_twice(self) -> None:
        self.kv.check_integrity(self.requests)
        owned = [block for request in self.requests for block in request.block_table]
        assert len(set(owned)) == len(owned) == self.kv.used_blocks
        assert self.kv.used_blocks + self.kv.free_blocks == self.kv.num_blocks

    @invariant()
    def no_table_is_longer_than_it_must_be(self) -> None:
        for request in self.requests:
            assert len(request.block_table) == -(-request.num_cached // self.kv.block_size)

    def teardown(self) -> None:
        for request in self.requests:
            self.kv.release(request)
        assert self.kv.used_blocks == 0


KVMachine.TestCase.settings = settings(deadline=None, max_examples=60, stateful_step_count=40)
test_blocks_are_never_lost_or_shared_and_all_come_back = KVMachine.TestCase


def test_a_pool_holds_what_its_blocks_hold() -> None:
    kv = KVManager(num_blocks=3, block_size=4)
    assert kv.can_ever_hold(12)
    assert not kv.can_ever_hold(13)


def test_with_the_cache_off_nobody_needs_blocks() -> None:
    kv = KVManager.off()
    request = make_request(0, prompt=100)
    assert not kv.enabled
    assert kv.can_ever_hold(10**9)
    assert kv.blocks_needed(request, 100) == 0
    kv.allocate(request, 100)
    assert request.block_table == []
    kv.check_integrity([request])


def damaged_pools() -> list[tuple[str, KVManager, Request]]:
    cases = []
    for what in ("lost", "held more than once", "do not exist", "tokens cached"):
        kv, request = KVManager(4, 2), make_request(0)
        kv.allocate(request, 4)
        cases.append((what, kv, request))
    cases[0][2].block_table.pop()
    cases[1][2].block_table.append(cases[1][2].block_table[0])
    cases[2][2].block_table.append(4)
    cases[3][2].num_cached = 5
    return cases


@pytest.mark.parametrize(("what", "kv", "request_"), damaged_pools())
def test_check_integrity_says_what_is_wrong(what: str, kv: KVManager, request_: Request) -> None:
    with pytest.raises(KneeError, match=what):
        kv.check_integrity([request_])


def test_a_block_both_free_and_owned_is_found() -> None:
    kv, request = KVManager(4, 2), make_request(0)
    kv.allocate(request, 4)
    kept = list(request.block_table)
    kv.release(request)
    request.block_table.extend(kept)
    with pytest.raises(KneeError, match="held more than once"):
        kv.check_integrity([request])


@pytest.mark.parametrize(("num_blocks", "block_size"), [(-1, 16), (4, 0), (4, -1)])
def test_impossible_pools_are_refused(num_blocks: int, block_size: int) -> None:
    with pytest.raises(UserError):
        KVManager(num_blocks, block_size)
