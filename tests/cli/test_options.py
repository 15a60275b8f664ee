"""What a user leaves to the device is settled before anything is loaded, so that a record says what was used."""

from __future__ import annotations

from typing import Any

import pytest

from knee.cli.options import settle
from knee.devices import DEVICES, ReferenceDevice
from knee.errors import UserError

LEFT: dict[str, Any] = {
    "device": "reference",
    "dtype": "auto",
    "threads": None,
    "block_size": None,
    "max_batched_tokens": None,
    "overlap": None,
}


@pytest.fixture
def overlapping(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference device says that it overlaps, and has wishes of its own."""
    own = {"overlaps": True, "block_size_default": 64, "token_budget_default": 2048}
    monkeypatch.setitem(DEVICES, "reference", type("Overlapping", (ReferenceDevice,), own))


def settled(**given: Any) -> tuple[Any, ...]:
    options = {**LEFT, **given}
    settle(options)
    return options["block_size"], options["max_batched_tokens"], options["overlap"]


def test_numbers_are_those_that_suit_the_device() -> None:
    assert settled() == (16, 512, None)


@pytest.mark.usefixtures("overlapping")
def test_a_device_s_own_numbers_count() -> None:
    assert settled() == (64, 2048, "on")


@pytest.mark.usefixtures("overlapping")
def test_what_is_given_stays() -> None:
    assert settled(block_size=8, max_batched_tokens=100, overlap="off") == (8, 100, "off")


def test_an_option_that_a_command_does_not_have_is_not_made_up() -> None:
    options = {"device": "reference", "dtype": "auto", "threads": None}
    settle(options)
    assert options.keys() == {"device", "dtype", "threads"}


def test_overlap_is_refused_where_the_device_cannot_and_off_is_no_news() -> None:
    assert settled(overlap="off")[2] == "off"
    with pytest.raises(UserError, match="one step after the other"):
        settled(overlap="on")


def test_a_device_that_is_not_there_is_said() -> None:
    with pytest.raises(UserError, match="not available"):
        settled(device="abacus")
