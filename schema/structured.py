"""The form that an answer must have: a task's ``structured_output``."""

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
)

from schema.json_values import check_json
from schema.message import rule

MAX_SCHEMA_CHARS = 65_536
"""Of a JSON Schema, written without spaces: the work of compiling one grows with its length. JSON
Schema itself cannot express this limit."""
MAX_PATTERN_CHARS = 4_096
MAX_CHOICES = 1_000
MAX_CHOICE_CHARS = 1_024

# Pydantic puts these into the paths of errors; `schema.validation.problems` takes them out again.
JSON_SCHEMA_TAG, JSON_OBJECT_TAG, REGEX_TAG, CHOICE_TAG = (
    "<json schema>",
    "<json object>",
    "<regex>",
    "<choice>",
)
_OPTIONS = "x-guidance"  # where llguidance reads options; only the engine sets them


def _check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    check_json(schema)
    if _OPTIONS in schema:
        raise rule("is not supported; leave it out", _OPTIONS)
    length = len(json.dumps(schema, separators=(",", ":"), ensure_ascii=False))
    if length > MAX_SCHEMA_CHARS:
        raise rule(f"has {length} characters as JSON; at most {MAX_SCHEMA_CHARS} are allowed")
    return schema


AnswerSchema = Annotated[
    dict[str, Any],
    AfterValidator(_check_schema),
    WithJsonSchema({"type": "object", "not": {"required": [_OPTIONS]}}),
]
"""A JSON Schema for answers. The engine decides which keywords are supported."""


# Where a JSON Schema has schemas: under these keywords by name, in a list, or one.
_BY_NAME = ("$defs", "definitions", "properties", "patternProperties")
_IN_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLE = ("items", "additionalItems", "additionalProperties")


def closed_strictly(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose objects have the keys that they declare only: OpenAI's ``strict: true``.

    Where a schema says nothing of other keys, the engine closes its objects anyway. Maps, which
    declare no keys by name, stay as they are: closed, they would always be empty.
    """
    made = dict(schema)
    for keyword in _BY_NAME:
        if isinstance(named := made.get(keyword), dict):
            made[keyword] = {key: _closed(value) for key, value in named.items()}
    for keyword in _IN_LISTS:
        if isinstance(several := made.get(keyword), list):
            made[keyword] = [_closed(value) for value in several]
    for keyword in _SINGLE:
        made |= {keyword: _closed(made[keyword])} if isinstance(made.get(keyword), dict) else {}
    if "properties" in made and made.get("additionalProperties") not in (None, False):
        del made["additionalProperties"]  # the engine closes it, with what an allOf adds
    return made


def _closed(value: Any) -> Any:
    return closed_strictly(value) if isinstance(value, dict) else value


class _Form(BaseModel):
    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, allow_inf_nan=False, serialize_by_alias=True
    )


class JsonSchemaForm(_Form):
    """The answer is JSON that is valid under a JSON Schema."""

    type: Literal["json_schema"]
    json_schema: AnswerSchema = Field(
        alias="schema",
        description="Keywords that constrain and are not supported are refused; properties come "
        "in the order in which the schema has them.",
    )


class JsonObjectForm(_Form):
    """The answer is a JSON object."""

    type: Literal["json_object"]


class RegexForm(_Form):
    """The whole answer matches a regular expression."""

    type: Literal["regex"]
    pattern: Annotated[str, Field(min_length=1, max_length=MAX_PATTERN_CHARS)] = Field(
        description="In the syntax of Rust's regex library: no look-around, no back-references."
    )


class ChoiceForm(_Form):
    """The answer is one of some texts."""

    type: Literal["choice"]
    choices: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=MAX_CHOICE_CHARS)]],
        Field(min_length=1, max_length=MAX_CHOICES, fail_fast=True),
    ]


FORMS: dict[str | int, type[BaseModel]] = {
    JSON_SCHEMA_TAG: JsonSchemaForm,
    JSON_OBJECT_TAG: JsonObjectForm,
    REGEX_TAG: RegexForm,
    CHOICE_TAG: ChoiceForm,
}
_TAG_OF = {
    "json_schema": JSON_SCHEMA_TAG,
    "json_object": JSON_OBJECT_TAG,
    "regex": REGEX_TAG,
    "choice": CHOICE_TAG,
}


def _form_tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return _TAG_OF.get(kind) if isinstance(kind, str) else None


StructuredOutput = Annotated[
    Annotated[JsonSchemaForm, Tag(JSON_SCHEMA_TAG)]
    | Annotated[JsonObjectForm, Tag(JSON_OBJECT_TAG)]
    | Annotated[RegexForm, Tag(REGEX_TAG)]
    | Annotated[ChoiceForm, Tag(CHOICE_TAG)],
    Discriminator(
        _form_tag,
        custom_error_type="block_type",
        custom_error_message='must be {"type": "json_schema", "schema": ...}, '
        '{"type": "json_object"}, {"type": "regex", "pattern": ...} or '
        '{"type": "choice", "choices": [...]}',
    ),
]
"""One form that the answer of a task must have."""
