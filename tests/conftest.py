"""Fixtures that tests of several folders share."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import settings

from knee.devices.cuda.device import has_gpu
from knee.errors import DownloadError

# A machine that is busy with other things is no reason to fail.
settings.register_profile("knee", deadline=None)
settings.load_profile("knee")

# Where there is no GPU, Triton's interpreter runs the kernels; triton looks when it is imported, by whomever.
if not has_gpu():
    os.environ["TRITON_INTERPRET"] = "1"

MUST_RUN = "KNEE_TESTS_MUST_RUN"  # set by `make test`: there no test may be skipped silently


def pytest_sessionstart(session: pytest.Session) -> None:
    """Once, not in each of xdist's workers."""
    if os.environ.get(MUST_RUN) == "1" and not hasattr(session.config, "workerinput"):
        check_oracle()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where there is no GPU, what needs one is skipped, always: no installation could change that."""
    if item.get_closest_marker("gpu") and not has_gpu():
        pytest.skip("needs an NVIDIA GPU")


def check_oracle() -> None:
    """Ends the session where the tests that need torch, transformers or Triton would be skipped."""
    for name in ("torch", "transformers", *(["triton"] if sys.platform == "linux" else [])):
        try:
            importlib.import_module(name)
        except Exception as error:
            pytest.exit(f"{MUST_RUN} is set, but {name} cannot be imported ({error}): pip install -e '.[oracle]'", 1)


def unavailable(reason: str) -> NoReturn:
    """Skips a test that lacks something; fails it where every test must run."""
    if os.environ.get(MUST_RUN) == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's file, fetched if it is not in the cache; `unavailable` where that is impossible."""
    from knee.weights import catalog

    try:
        return catalog.resolve("smollm2-135m", progress=False)
    except DownloadError as error:
        unavailable(str(error))


@pytest.fixture(autouse=True)
def _no_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are as wide as COLUMNS says; a test's page must not depend on the terminal it was started from."""
    monkeypatch.delenv("COLUMNS", raising=False)
