"""The folder where downloaded models and their hashes are kept. Knows paths and bytes, no model formats."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import platformdirs


def cache_dir() -> Path:
    """`$KNEE_CACHE`, or the user's cache folder of this system. Not created here."""
    override = os.environ.get("KNEE_CACHE")
    return Path(override).expanduser() if override else Path(platformdirs.user_cache_dir("knee", appauthor=False))


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex, remembered by path, size and time of change: large models are hashed once."""
    status = path.stat()
    identity = f"{path.resolve()}\n{status.st_size}\n{status.st_mtime_ns}"
    note = cache_dir() / "sha256" / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    remembered = _remembered(note)
    if remembered is None:
        remembered = hash_file(path)
        _remember(note, remembered)
    return remembered


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex, read now."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_with(path: Path, content: bytes) -> None:
    """Write a small file so that readers see the old content or the new, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
    partial.write_bytes(content)
    partial.replace(path)


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in _files(path))


def _files(path: Path) -> Iterator[Path]:
    return iter([path]) if path.is_file() else (file for file in path.rglob("*") if file.is_file())


def _remembered(note: Path) -> str | None:
    try:
        text = note.read_text()
    except OSError:
        return None
    return text if len(text) == 64 else None


def _remember(note: Path, digest: str) -> None:
    with suppress(OSError):  # a read-only cache folder costs time at the next run, nothing else
        replace_with(note, digest.encode())
