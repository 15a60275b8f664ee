"""Writes a page so that a reader never finds half of one."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from knee.errors import RecordError


def replace_file(path: Path, text: str) -> None:
    """Put `text` at `path`: the old file or the new one, whatever happens. Raises `RecordError` where it cannot."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")  # two reports at once do not meet
    try:
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(temporary.unlink, missing_ok=True)
            with temporary.open("wb") as file:
                file.write(text.encode())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
    except OSError as error:
        raise RecordError(f"cannot write {path}: {error.strerror or error}") from error
