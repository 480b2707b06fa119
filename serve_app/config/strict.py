"""How arguments are parsed: strictly, and every fault names its key."""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)

from schema.model_id import check_model_id

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
ModelId = Annotated[str, Field(max_length=200), AfterValidator(check_model_id)]


def _gpu_share(value: object) -> object:
    # One validator, not a union: a union reports a fault once for each member.
    if value == "auto":
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        if 0 < number <= 1 or (number > 1 and number.is_integer()):
            return value
    raise ValueError(
        f'must be "auto", a number above 0 and up to 1, or a whole number of GPUs, got {value!r}'
    )


NumGpus = Annotated[Literal["auto"] | float, PlainValidator(_gpu_share)]
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.*?/-]+$")]
"""Of hub ids, as a shell matches file names; ``*`` matches slashes too."""


class Strict(BaseModel):
    """Frozen, without coercion; an unknown key is answered with the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            unknown = [key for key in value if key not in cls.model_fields]
            if unknown:
                raise ValueError("; ".join(unknown_key(key, cls) for key in unknown))
        return value


def unknown_key(key: object, model: type[BaseModel]) -> str:
    """What to say of a key that ``model`` does not have."""
    near = difflib.get_close_matches(str(key), model.model_fields, n=1)
    if near:
        return f"unknown key {str(key)!r}; did you mean {near[0]!r}?"
    return f"unknown key {str(key)!r}; the keys are {', '.join(model.model_fields)}"


def explain(error: ValidationError, prefix: str = "args") -> list[str]:
    """One line for each fault, with the path of the key."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False):
        path = ".".join([*([prefix] if prefix else []), *(str(part) for part in fault["loc"])])
        lines.append(f"{path}: {fault['msg'].removeprefix('Value error, ')}")
    return lines
