"""Names of models, and where their files are."""

from __future__ import annotations

from pathlib import Path

from knee.errors import ModelLoadError


def is_catalogued(spec: str) -> bool:
    return spec in ("smollm2-135m", "distilgpt2")


def resolve(spec: str) -> Path:
    path = Path(spec)
    if spec == "smollm2-135m":
        from knee.weights.cache import cache_dir

        path = cache_dir() / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        raise ModelLoadError(f"{spec} is no alias, folder or .gguf file")
    return path
