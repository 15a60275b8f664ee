"""Where the cuda device's kernels run in tests: on the GPU; without one, on the CPU in Triton's interpreter."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

from knee.devices.cuda.device import has_gpu

INTERPRET = not has_gpu()
WHERE = "cpu" if INTERPRET else "cuda"


class _Patched:
    """What Triton takes back after each kernel: nothing, since nothing is ever compiled here."""

    def restore(self) -> None:
        pass


def _interpret() -> None:
    """Patch the language once, and not for every call of a function in a kernel, which takes longer than the call."""
    from triton import language
    from triton.runtime import interpreter

    for module in (language, language.core):
        interpreter._patch_lang(SimpleNamespace(__globals__={"tl": module}))
    interpreter._patch_lang = lambda _: _Patched()
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
    # Triton makes loop bounds with int() of an array of one element, which NumPy 2.4 does not take any more.
    language.core.tensor.__index__ = lambda self: self.handle.data.item()


if INTERPRET:
    assert "triton" not in sys.modules or os.environ.get("TRITON_INTERPRET") == "1", "set by conftest before any import"
    os.environ["TRITON_INTERPRET"] = "1"
    _interpret()
