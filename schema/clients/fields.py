"""Kinds of fields that several requests have."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from schema.validation.problems import UNSUPPORTED


class Strict(BaseModel):
    """Nothing is coerced, and unknown fields are refused."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, eq=False)
class Only:
    """Marks a field of OpenAI's that must have a value without effect.

    That is null or one of ``values``; any other value is refused with ``problem``, so that a client
    cannot believe that a setting has an effect when it has none.
    """

    problem: str
    values: tuple[Any, ...] = ()

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Called by pydantic."""
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Called by pydantic."""
        return {
            "description": f"Any other value {self.problem}.",
            "enum": [None, *self.values],
        }

    def _check(self, value: Any) -> Any:
        # In Python True is 1 and False is 0; in JSON they are not.
        for allowed in (None, *self.values):
            if isinstance(value, bool) == isinstance(allowed, bool) and value == allowed:
                return value
        raise PydanticCustomError(UNSUPPORTED, "{problem}", {"problem": self.problem})


@dataclass(frozen=True, eq=False)
class Hint:
    """Marks a field that is accepted with any value and has no effect.

    This is for settings whose weaker reading is harmless: an answer that does not follow them still
    is what the client asked for. The value is dropped when the request is parsed, so that nothing
    can depend on it and nothing of it is kept. ``docs/api.md`` lists the fields.

    Attributes:
        why: a sentence for the published schema that says why there is no effect.
    """

    why: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Called by pydantic."""
        return core_schema.no_info_plain_validator_function(lambda _: None)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Called by pydantic."""
        return {"description": f"A hint, accepted with any value and without effect. {self.why}"}


def marked(model: type[BaseModel], *marks: type[Hint] | type[Only]) -> list[str]:
    """The names of the fields of ``model`` that have one of the ``marks``."""
    return [
        field.alias or name
        for name, field in model.model_fields.items()
        if any(isinstance(mark, marks) for mark in field.metadata)
    ]


def published(
    examples: Sequence[Any], rules: Sequence[Any] = ()
) -> Callable[[dict[str, Any], type[BaseModel]], None]:
    """Pydantic's ``json_schema_extra`` of a request.

    It adds examples and the ``rules`` between fields, and puts the fields without effect last.
    """

    def extra(schema: dict[str, Any], model: type[BaseModel]) -> None:
        schema["examples"] = list(examples)
        if rules:
            schema["allOf"] = list(rules)
        fields, last = schema["properties"], set(marked(model, Hint, Only))
        schema["properties"] = dict(sorted(fields.items(), key=lambda item: item[0] in last))

    return extra


def forced_calls(choice: dict[str, Any], beside: dict[str, Any] | None = None) -> dict[str, Any]:
    """The rule between a request's ``tool_choice`` and its other fields, in JSON Schema.

    Args:
        choice: a ``tool_choice`` that forces calls.
        beside: what cannot stand beside it.
    """
    then: dict[str, Any] = {
        "properties": {"tools": {"type": "array", "minItems": 1}},
        "required": ["tools"],
    }
    return {
        "$comment": "Forced calls need tools.",
        "if": {"properties": {"tool_choice": choice}, "required": ["tool_choice"]},
        "then": then if beside is None else then | {"not": beside},
    }


def not_yet(what: str = "is not supported yet; leave it out") -> Only:
    """A field that this server may learn to honour, and for now has to be left out."""
    return Only(what)
