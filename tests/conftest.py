"""Fixtures that tests of several folders share."""

from __future__ import annotations

from pathlib import Path

import pytest

from knee.errors import DownloadError


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's file, fetched if it is not in the cache; the test is skipped where that is impossible."""
    from knee.weights import catalog

    try:
        return catalog.resolve("smollm2-135m", progress=False)
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(autouse=True)
def _no_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are as wide as COLUMNS says; a test's page must not depend on the terminal it was started from."""
    monkeypatch.delenv("COLUMNS", raising=False)
