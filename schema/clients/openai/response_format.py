"""``response_format`` of chat completions: the form that the answer must have."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from schema.clients.fields import Strict
from schema.message import TEXT_TAG
from schema.structured import JSON_OBJECT_TAG, JSON_SCHEMA_TAG, AnswerSchema, closed_strictly

MAX_NAME_CHARS = 64
MAX_DESCRIPTION_CHARS = 8_192


class TextFormat(Strict):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Strict):
    """A JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON Schema under a name."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)] = Field(
        description="For people; the model does not get it."
    )
    description: Annotated[str, Field(max_length=MAX_DESCRIPTION_CHARS)] | None = Field(
        default=None, description="For people; the model does not get it."
    )
    json_schema: AnswerSchema = Field(alias="schema", description="As in a task.")
    strict: bool | None = Field(
        default=None,
        description="true: objects have the keys that they declare only, whatever "
        "additionalProperties says. The answer is valid under the schema in any case.",
    )

    def form(self) -> dict[str, Any]:
        """The same in a task."""
        schema = closed_strictly(self.json_schema) if self.strict else self.json_schema
        return {"type": "json_schema", "schema": schema}


class JsonSchemaFormat(Strict):
    """JSON that is valid under a JSON Schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


def _tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    tags = {
        "text": TEXT_TAG,
        "json_object": JSON_OBJECT_TAG,
        "json_schema": JSON_SCHEMA_TAG,
    }
    return tags.get(kind) if isinstance(kind, str) else None


ResponseFormat = Annotated[
    Annotated[TextFormat, Tag(TEXT_TAG)]
    | Annotated[JsonObjectFormat, Tag(JSON_OBJECT_TAG)]
    | Annotated[JsonSchemaFormat, Tag(JSON_SCHEMA_TAG)],
    Discriminator(
        _tag,
        custom_error_type="block_type",
        custom_error_message='must be {"type": "text"}, {"type": "json_object"} or '
        '{"type": "json_schema", "json_schema": {"name": ..., "schema": ...}}',
    ),
]

INNER: dict[str | int, type[BaseModel]] = {
    TEXT_TAG: TextFormat,
    JSON_OBJECT_TAG: JsonObjectFormat,
    JSON_SCHEMA_TAG: JsonSchemaFormat,
    "json_schema": NamedSchema,
}
"""The models of the objects in it, for `schema.clients.terms.dialect`."""


def structured_output(
    form: TextFormat | JsonObjectFormat | JsonSchemaFormat | None,
) -> dict[str, Any] | None:
    """The same in a task."""
    if isinstance(form, JsonSchemaFormat):
        return form.json_schema.form()
    return {"type": "json_object"} if isinstance(form, JsonObjectFormat) else None
