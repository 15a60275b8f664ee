"""The process in which a chat template runs: JSON from stdin, text to stdout. Started by `chat.py`; imports no knee.

The environment is the one that templates are written for, that of transformers' `apply_chat_template`.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from typing import Any, NoReturn

MEMORY_BYTES = 1 << 30


def main(limit: int) -> None:
    """Render at most `limit` characters."""
    _limit_memory()
    task = json.loads(sys.stdin.buffer.read())
    parts, size = [], 0
    for part in _environment().from_string(task["template"]).generate(task["context"]):
        size += len(part)
        if size > limit:
            raise ValueError(f"it writes more than {limit} characters")
        parts.append(part)
    sys.stdout.buffer.write("".join(parts).encode())


def _limit_memory() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    except (ImportError, OSError, ValueError):
        pass  # no such limit on this system: the limit on time remains


def _environment() -> Any:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise
    environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
    return environment


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False, **options: Any) -> str:
    """Jinja's own would escape for HTML."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, **options)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
