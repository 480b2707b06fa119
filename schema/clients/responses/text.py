"""``text`` of the Responses API: the form that the answer must have."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag

from schema.clients.fields import Hint, Strict
from schema.clients.openai.response_format import (
    JsonObjectFormat,
    NamedSchema,
    TextFormat,
)
from schema.message import TEXT_TAG
from schema.structured import JSON_OBJECT_TAG, JSON_SCHEMA_TAG


class JsonSchemaFormat(NamedSchema):
    """JSON that is valid under a JSON Schema."""

    type: Literal["json_schema"]


def _tag(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    tags = {"text": TEXT_TAG, "json_object": JSON_OBJECT_TAG, "json_schema": JSON_SCHEMA_TAG}
    return tags.get(kind) if isinstance(kind, str) else None


Format = Annotated[
    Annotated[TextFormat, Tag(TEXT_TAG)]
    | Annotated[JsonObjectFormat, Tag(JSON_OBJECT_TAG)]
    | Annotated[JsonSchemaFormat, Tag(JSON_SCHEMA_TAG)],
    Discriminator(
        _tag,
        custom_error_type="block_type",
        custom_error_message='must be {"type": "text"}, {"type": "json_object"} or '
        '{"type": "json_schema", "name": ..., "schema": ...}',
    ),
]


class TextConfig(Strict):
    """The form of the answer's text."""

    format: Format | None = Field(default=None, description="Any text, where it is absent.")
    verbosity: Annotated[Any, Hint("Say in the input how long the answer should be.")] = None


INNER: dict[str | int, type[BaseModel]] = {
    "text": TextConfig,
    TEXT_TAG: TextFormat,
    JSON_OBJECT_TAG: JsonObjectFormat,
    JSON_SCHEMA_TAG: JsonSchemaFormat,
}
"""The models of the objects in it, for `schema.clients.terms.dialect`."""


def structured_output(text: TextConfig | None) -> dict[str, Any] | None:
    """The same in a task."""
    form = text.format if text is not None else None
    if isinstance(form, JsonSchemaFormat):
        return form.form()
    return {"type": "json_object"} if isinstance(form, JsonObjectFormat) else None
