"""Settings of operators and Python callers, parsed strictly: every error names its key.

Requests of clients are checked in another way (`schema.validation.problems`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from schema.validation.problems import requirement

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]

_MAX_VALUE_CHARS = 80


class Strict(BaseModel):
    """Frozen, without coercion; the error for an unknown key names the nearest known one.

    Attributes:
        elsewhere: messages for keys that this model does not have, and that are set elsewhere.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    elsewhere: ClassVar[Mapping[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            unknown = [key for key in value if key not in cls.model_fields]
            if unknown:
                raise ValueError("; ".join(_of_unknown(key, cls) for key in unknown))
        return value


class StrictCall(Strict):
    """For models that Python callers make: an error is a plain `ValueError` in one sentence."""

    def __init__(self, **fields: Any) -> None:
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ValueError("; ".join(_sentences(error))) from None


def unknown_key(key: object, model: type[BaseModel]) -> str:
    """The message for a key that ``model`` does not have."""
    near = difflib.get_close_matches(str(key), model.model_fields, n=1)
    if near:
        return f"unknown key {str(key)!r}; did you mean {near[0]!r}?"
    return f"unknown key {str(key)!r}; the keys are {', '.join(model.model_fields)}"


def _of_unknown(key: object, model: type[Strict]) -> str:
    message = model.elsewhere.get(str(key))
    return unknown_key(key, model) if message is None else f"{key} {message}"


def _sentences(error: ValidationError) -> list[str]:
    """One for each fault: the field, its limit, and what was given."""
    messages = []
    for fault in error.errors(include_url=False):
        name = ".".join(map(str, fault["loc"]))
        needs = requirement(fault["type"], fault.get("ctx", {}))
        if fault["type"] == "missing":
            messages.append(f"{name} is required")
        elif needs is not None:
            messages.append(f"{name} {needs}, got {fault['input']!r:.{_MAX_VALUE_CHARS}}")
        else:
            message = fault["msg"].removeprefix("Value error, ")
            messages.append(f"{name}: {message}" if name else message)
    return messages
