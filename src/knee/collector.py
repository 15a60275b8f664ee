"""Python's collector of reference cycles, and when it is in the way."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Python's collector of reference cycles is off meanwhile.

    An engine makes thousands of objects a step and no cycles; looking for some takes as long as all the rest of a large
    batch's host time, and comes in pauses.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
