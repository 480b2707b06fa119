"""Schemas that well-known libraries write are accepted, and their readers take the answers."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import uuid
from typing import Annotated, Any, Literal

import pydantic
import pytest
from jsonschema import Draft202012Validator
from jsonschema.validators import validator_for
from langchain_core.utils.function_calling import convert_to_openai_tool
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel, Field

from engine.sampling.grammar import Grammar
from engine.sampling.json_schema.rewrite import rewritten
from schema.structured import closed_strictly
from tests.engine.sampling.test_grammar_sound import read, walk


class Color(enum.Enum):
    """An enumeration."""

    RED = "red"
    BLUE = "blue"


class Cat(BaseModel):
    """One kind, with a default, so that pydantic does not require it."""

    kind: Literal["cat"] = "cat"
    lives: int = Field(9, ge=0, le=9)


class Dog(BaseModel):
    """Another kind, which refers to itself."""

    kind: Literal["dog"] = "dog"
    friend: Dog | None = None


class Scalars(BaseModel):
    """Types of one value."""

    when: datetime.datetime
    day: datetime.date
    clock: datetime.time
    id: uuid.UUID
    color: Color
    flag: bool
    score: float = Field(gt=0, lt=1)
    count: pydantic.PositiveInt
    large: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
    code: Annotated[str, Field(pattern=r"^[A-Z]{3}\d?$")]
    short: Annotated[str, Field(min_length=1, max_length=5)]
    address: ipaddress.IPv4Address
    secret: pydantic.SecretStr
    file: pathlib.Path
    data: bytes
    nothing: None = None
    status: Literal["a", "b", 3]


class Containers(BaseModel):
    """Types of several values."""

    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    pets: list[Cat | Dog] = Field(max_length=2)
    pair: tuple[int, Annotated[str, Field(max_length=3)]]
    counts: dict[str, int] = Field(max_length=2)
    by_color: dict[Color, float]
    by_number: dict[Annotated[str, Field(pattern="^[0-9]{1,3}$")], bool] = Field(max_length=1)
    maybe: int | str | None
    anything: Any
    loose: dict[str, Any] = Field(max_length=1)
    matrix: list[Annotated[list[float], Field(max_length=2)]] = Field(max_length=2)


class Open(BaseModel, extra="allow"):
    """Other keys are allowed."""

    a: int


class Closed(BaseModel, extra="forbid"):
    """Other keys are forbidden."""

    a: int


MODELS: list[type[BaseModel]] = [Scalars, Containers, Cat, Dog, Open, Closed]


def answers(schema: dict[str, Any]) -> list[str]:
    """Random answers, valid under the schema as it was written."""
    grammar = Grammar.json(rewritten(schema, "schema"), "schema")
    texts = [walk(grammar, likes, seed) for seed in range(3) for likes in ('"', "0129", '{\\":')]
    ended = [text for text in texts if text is not None]
    assert ended
    validator = validator_for(schema, default=Draft202012Validator)
    for text in ended:
        validator(schema).validate(read(text))
    return ended


@pytest.mark.parametrize("model", MODELS)
def test_pydantic(model: type[BaseModel]) -> None:
    for text in answers(model.model_json_schema()):
        value = model.model_validate_json(text)
        extra = set(value.model_extra or ())
        assert not extra or model is Open


@pytest.mark.parametrize("kind", [decimal.Decimal, pydantic.IPvAnyAddress, pydantic.Base64Bytes])
def test_types_whose_text_pydantic_does_not_describe(kind: Any) -> None:
    assert answers(pydantic.TypeAdapter(kind).json_schema())


class Step(BaseModel):
    """Of a solution."""

    explanation: str = Field(description="Why")
    output: Color


class Solution(BaseModel):
    """As OpenAI's guide has it."""

    steps: list[Step]
    final: Step | None
    pet: Cat | Dog


def test_openai_strict() -> None:
    schema = to_strict_json_schema(Solution)
    for text in answers(closed_strictly(schema)):
        Solution.model_validate_json(text)


def test_langchain_tools() -> None:
    """Models, TypedDicts and functions, strict or not."""

    def search(query: str, limit: int = 5, tags: list[str] | None = None) -> str:
        """Search.

        Args:
            query: what for.
            limit: how many.
            tags: of what.
        """
        return query

    for strict in (None, True):
        for tool in (search, Solution, Dog):
            function = convert_to_openai_tool(tool, strict=strict)["function"]
            declared = set(function["parameters"]["properties"])
            for text in answers(function["parameters"]):
                assert set(json.loads(text)) <= declared


# As zod 4 (z.toJSONSchema), instructor, pydantic 1 and OpenAPI documents write them.
WRITTEN: dict[str, dict[str, Any]] = {
    "zod object": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "properties": {
            "email": {
                "type": "string",
                "format": "email",
                "pattern": "^(?!\\.)(?!.*\\.\\.)([A-Za-z0-9_'+\\-\\.]*)[A-Za-z0-9_+-]"
                "@([A-Za-z0-9][A-Za-z0-9\\-]*\\.)+[A-Za-z]{2,}$",
            },
            "n": {
                "type": "integer",
                "minimum": -9007199254740991,
                "maximum": 9007199254740991,
            },
            "url": {"type": "string", "format": "uri"},
            "any": {},
        },
        "required": ["email", "n", "url", "any"],
        "additionalProperties": False,
    },
    "zod record and tuple": {
        "type": "array",
        "prefixItems": [
            {
                "type": "object",
                "propertyNames": {"type": "string"},
                "additionalProperties": {"type": "number"},
            },
            {"anyOf": [{"type": "string"}, {"type": "null"}]},
        ],
        "minItems": 2,
        "maxItems": 2,
    },
    "zod discriminated union": {
        "oneOf": [
            {"type": "object", "properties": {"t": {"type": "string", "const": tag}}}
            | {"required": ["t"], "additionalProperties": False}
            for tag in ("a", "b")
        ]
    },
    "draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "definitions": {"P": {"type": "object", "properties": {"x": {"type": "number"}}}},
        "type": "object",
        "properties": {
            "p": {"$ref": "#/definitions/P"},
            "q": {"allOf": [{"$ref": "#/definitions/P"}]},
        },
        "required": ["p"],
    },
    "draft 4": {
        "$schema": "http://json-schema.org/draft-04/schema#",
        "type": "integer",
        "minimum": 0,
        "exclusiveMinimum": True,
        "maximum": 9,
    },
    "OpenAPI": {
        "type": "object",
        "properties": {
            "i": {"type": "integer", "format": "int64", "example": 5, "nullable": True},
            "d": {"type": "number", "format": "double", "xml": {"name": "d"}},
            "b": {"type": "string", "format": "byte", "externalDocs": {"url": "https://x.org"}},
        },
        "required": ["i", "d", "b"],
    },
    "a decimal as text": {"type": "string", "pattern": r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$"},
    "look-around in one of several": {
        "anyOf": [{"type": "string", "pattern": "^(?=x)"}, {"type": "null"}]
    },
    "a set of one": {
        "type": "array",
        "uniqueItems": True,
        "maxItems": 1,
        "items": {"type": "null"},
    },
    "a tool without arguments": {"type": "object", "properties": {}},
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written(name: str) -> None:
    assert answers(WRITTEN[name])


@pytest.mark.parametrize("name", ["binary", "byte", "base64", "path", "password", "int32", "blah"])
def test_formats_that_are_annotations(name: str) -> None:
    free, named = ({"type": "string"}, {"type": "string", "format": name})
    assert rewritten(named, "schema") == rewritten(free, "schema")
