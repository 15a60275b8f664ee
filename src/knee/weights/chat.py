"""Chat templates: a program in Jinja that comes with a model, and so is not trusted.

Jinja's sandbox keeps a template from Python's internals, but not from running or growing for ever, and one operation
of the interpreter (`9 ** 9 ** 9`, `"a" * 10 ** 12`) cannot be stopped from within. A process of its own can: it is
killed when its time is over, from any thread and on any system, and has its own limit on memory where the system
keeps one. It costs some 100 ms a conversation.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from knee.errors import UserError

SECONDS = 5.0
MAX_GROWTH = 1 << 20  # characters that a template may add to the conversation
_RENDERER = Path(__file__).with_name("chat_renderer.py")


def render(template: str, context: Mapping[str, Any], seconds: float = SECONDS) -> str:
    """The text of a template. `UserError` if it is faulty, refuses the messages, or exceeds the limits."""
    task = json.dumps({"template": template, "context": context})
    limit = len(task) + MAX_GROWTH
    # -P: the folder of this file must not shadow modules of the standard library
    command = [sys.executable, "-P", str(_RENDERER), str(limit)]
    try:
        done = subprocess.run(command, input=task.encode(), capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise UserError(f"the model's chat template ran for more than {seconds:g} s: give a plain prompt") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["it was killed"]
        raise UserError(f"the model's chat template failed: {lines[-1][:300]}")
    return done.stdout.decode()
