"""Types of arguments in the YAML file, and how their faults are reported."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PlainValidator, ValidationError

from schema.model_variant import check_model_id

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
"""A pattern of hub ids, as a shell matches file names; ``*`` matches slashes too."""


FileName = Annotated[str, Field(min_length=1)]
EnvironmentVariable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Its name."""


def explain(error: ValidationError, prefix: str = "args") -> list[str]:
    """One line for each fault, with the path of the key."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False):
        path = ".".join([*([prefix] if prefix else []), *(str(part) for part in fault["loc"])])
        lines.append(f"{path}: {fault['msg'].removeprefix('Value error, ')}")
    return lines
