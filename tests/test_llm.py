"""What an engine gets of a device: the size of its blocks and its pool, and whether its steps overlap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from knee import SamplingParams, llm
from knee.devices import DEVICES, ReferenceDevice
from knee.engine.policies import Policy, make_policy
from knee.errors import OutOfMemory, UserError
from knee.llm import LLM
from tests.cli.conftest import tiny_config, tiny_tensors
from tests.engine.fake_async_device import FakeAsyncDevice
from tests.lab.fake_llm import make_llm
from tests.weights.files import write_folder

TOKENS = 100  # that the memory of `Own` has room for
ASKED = SamplingParams(max_new_tokens=6, ignore_eos=True)


class Own(FakeAsyncDevice):
    """A device with memory of its own."""

    block_size_default = 8
    token_budget_default = 64
    taken = 0  # bytes of its pool

    def allocate_kv(self, num_blocks: int, block_size: int) -> None:
        super().allocate_kv(num_blocks, block_size)
        Own.taken = num_blocks * block_size * self.kv_bytes_per_token

    @classmethod
    def free_memory(cls) -> int:
        return TOKENS * 256 - cls.taken


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> LLM:
    monkeypatch.setattr(Own, "taken", 0)
    return replace(make_llm(), device=Own())


def four() -> Policy:
    return make_policy("continuous", 4)


def test_the_device_says_which_blocks_suit_it(own: LLM) -> None:
    assert own.engine(four(), longest=10).kv.block_size == 8
    assert own.engine(four(), longest=10, block_size=3).kv.block_size == 3
    assert make_llm().engine(four(), longest=10).kv.block_size == 16


def test_a_pool_that_fits_is_as_large_as_asked_for(own: LLM) -> None:
    assert own.engine(four(), longest=20).kv.num_blocks == 12
    assert own.engine(four(), longest=20, num_blocks=5).kv.num_blocks == 5


def test_a_pool_takes_what_is_left_where_one_request_fits(own: LLM) -> None:
    for _ in range(2):  # the pool before has made room for this one
        assert own.engine(four(), longest=40).kv.num_blocks == 12
    requests = own.generate([[1, 2, i] for i in range(40)], ASKED, max_batch_size=40)
    assert all(len(request.output) == 6 for request in requests)


@pytest.mark.parametrize("how", [{"longest": 97}, {"longest": 10, "num_blocks": 13}])
def test_a_pool_without_room_for_a_request_is_refused(own: LLM, how: dict[str, int]) -> None:
    with pytest.raises(OutOfMemory, match=r"KV pool of \d+ blocks x 8 tokens needs .* GiB of the device are free"):
        own.engine(four(), **how)  # type: ignore[arg-type]


def test_main_memory_gives_the_whole_pool_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "available_memory", lambda: TOKENS * 256)
    with pytest.raises(OutOfMemory, match="GiB are free"):
        make_llm().engine(four(), longest=40)


@pytest.mark.parametrize("size", [0, -1])
def test_an_impossible_block_is_refused(size: int) -> None:
    with pytest.raises(UserError, match="block size"):
        make_llm().engine(four(), block_size=size)


@pytest.mark.parametrize(("asked", "made"), [(None, True), (True, True), (False, False)])
def test_steps_overlap_where_the_device_can_and_nobody_minds(own: LLM, asked: bool | None, made: bool) -> None:
    assert own.engine(four(), longest=10, overlap=asked).overlap is made
    assert not make_llm().engine(four(), longest=10, overlap=asked).overlap


def test_generate_gives_the_same_on_a_device_that_overlaps(own: LLM) -> None:
    make: Callable[[LLM], list[list[int]]] = lambda one: [  # noqa: E731
        request.output for request in one.generate([[1, 2], [3], [4, 5, 6]], ASKED, max_batch_size=2)
    ]
    assert make(own) == make(make_llm())


def test_weights_have_to_fit_in_the_device_s_own_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = type("Small", (ReferenceDevice,), {"free_memory": classmethod(lambda _: 100)})
    monkeypatch.setitem(DEVICES, "reference", small)
    folder = write_folder(tmp_path / "tiny", tiny_tensors(), tiny_config())
    with pytest.raises(OutOfMemory, match="of the device's memory"):
        LLM.load(str(folder), device="reference")
