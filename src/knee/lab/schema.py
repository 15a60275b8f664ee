"""What all types of records share: strict about numbers, lenient about fields that a later knee may add."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue


def _storable(value: Any) -> Any:
    # argv and prompts may hold bytes that are no UTF-8; JSON cannot, so they are kept as visible escapes.
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def _utc(value: str) -> str:
    if datetime.fromisoformat(value).utcoffset() != timedelta(0):
        raise ValueError("a time must be ISO 8601 in UTC, such as 2025-01-31T12:00:00+00:00")
    return value


def _finite(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a number must be finite")
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            _finite(item)
    return value


Text = Annotated[str, BeforeValidator(_storable)]
UtcTime = Annotated[str, AfterValidator(_utc)]
Json = Annotated[JsonValue, AfterValidator(_finite)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Model(BaseModel):
    """Strict about numbers (no NaN, no infinity), lenient about fields a later knee may add."""

    model_config = ConfigDict(
        extra="ignore", allow_inf_nan=False, ser_json_inf_nan="constants", protected_namespaces=()
    )
