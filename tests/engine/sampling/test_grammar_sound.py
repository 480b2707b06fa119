"""Whatever tokens a model prefers, an answer that ends is valid for every reader of JSON."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator, FormatChecker
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from engine.sampling.grammar import Grammar, GrammarCompiler
from engine.sampling.json_schema.rewrite import rewritten
from schema.errors import TaskArgsInvalid, TaskExecutionError
from tests.engine.sampling.json_schemas import schemas
from tests.engine.sampling.test_grammar_tokenizers import allowed

# Tokens that end keys, begin others and write numbers in one piece.
PIECES = [
    *('{"', '":', '","', '"}', '"a":', '"a"', '{"a":1', ',"b":2}', '":"', '":1,"', '""', "}}"),
    *("e9", "e99", "E+", "1e9", "999", "e999", "00000000", "-0", ".0", "\\u00", "61", "\\\\"),
    *('\\"', "0" * 40, "9" * 40, '":{"a":', '","a":', 'a":', "name", "}, ", '"\n'),
]


def tokenizer() -> Any:
    """A token for each byte, and the pieces."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = [level.pre_tokenize_str(piece)[0][0] for piece in PIECES]
    vocabulary = {text: i for i, text in enumerate([*sorted(level.alphabet()), *spelled])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer, made.decoder = level, decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>")


TOKENIZER = tokenizer()
COMPILER = GrammarCompiler(TOKENIZER, [TOKENIZER.eos_token_id])
TEXTS = [TOKENIZER.decode([token]) for token in range(len(TOKENIZER))]
MAX_TOKENS = 500


def walk(grammar: Grammar, likes: str, seed: int) -> str | None:
    """A random answer whose tokens with characters of ``likes`` are likelier; None if endless."""
    chance = random.Random(seed)
    matcher = COMPILER.compile(grammar)
    ids: list[int] = []
    while not matcher.done:
        if len(ids) == MAX_TOKENS:
            return None
        late = len(ids) > 60
        likes_now = '"}]' if late else likes
        following = sorted(allowed(matcher))
        weights = [
            1 + 40 * sum(map(TEXTS[token].count, likes_now)) / (len(TEXTS[token]) or 1)
            for token in following
        ]
        if late and TOKENIZER.eos_token_id in following:
            break
        ids += chance.choices(following, weights)
        matcher.accept(ids[-1])
    return str(TOKENIZER.decode(ids)).removesuffix("<eos>")


def read(text: str) -> Any:
    """The value of JSON that all readers understand alike."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), text
        return dict(pairs)

    value = json.loads(text, object_pairs_hook=unique)
    orjson.loads(text)
    check_numbers(value)
    return value


def check_numbers(value: Any) -> None:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            check_numbers(item)
    elif isinstance(value, int | float):
        assert math.isfinite(float(value))


IN_PLACE = ("allOf", "anyOf", "oneOf")


def closed(node: Any) -> Any:
    """A schema whose objects that declare keys have no others, by ``unevaluatedProperties``.

    Only of the kinds that `schemas` makes; it shares nothing with the engine's way to close them.
    """
    if not isinstance(node, dict):
        return node
    made = below(node)
    parts = [node, *node.get("allOf", ())]
    if any("additionalProperties" in part for part in parts):
        return made
    if any("properties" in part for part in parts):
        return made | {"unevaluatedProperties": False}
    for keyword in set(IN_PLACE) & set(node):
        made[keyword] = [closed(branch) for branch in node[keyword]]
    return made


def below(node: dict[str, Any]) -> dict[str, Any]:
    """The same with all values inside its values closed."""
    made = dict(node)
    for keyword in ("properties", "patternProperties", "$defs"):
        if keyword in node:
            made[keyword] = {key: closed(value) for key, value in node[keyword].items()}
    for keyword in ("items", "additionalProperties"):
        if keyword in node:
            made[keyword] = closed(node[keyword])
    for keyword in IN_PLACE:
        if keyword in node:
            made[keyword] = [below(branch) for branch in node[keyword]]
    if "prefixItems" in node:
        made["prefixItems"] = [closed(item) for item in node["prefixItems"]]
    return made


FORMATS = FormatChecker(["date", "ipv4"])
LIKES = st.sampled_from(['\\"', '"', "0123456789", "eE+-9", "0.", '{",', "", "[{", "u\\", "]}"])
UNSATISFIABLE = ("Unsatisfiable", "allows no answer", "not disjoint")


def followed(schema: dict[str, Any], likes: str, seed: int) -> str | None:
    """A random answer under a schema; None if it does not end, or if there is none."""
    try:
        return walk(Grammar.json(rewritten(schema, "schema"), "schema"), likes, seed)
    except TaskArgsInvalid as error:
        if any(reason in error.message for reason in UNSATISFIABLE):
            return None
        raise
    except TaskExecutionError as error:
        if "no token" in error.message:
            return None
        raise


def check(schema: dict[str, Any], text: str) -> None:
    """A text is valid under a schema, whose objects are closed or not."""
    value = read(text)
    for one in (schema, closed(schema)):
        problem = next(Draft202012Validator(one, format_checker=FORMATS).iter_errors(value), None)
        assert problem is None, (schema, text, problem)


@settings(
    max_examples=400,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
@given(schemas(), LIKES, st.integers(0, 3))
def test_answers_under_random_schemas(schema: dict[str, Any], likes: str, seed: int) -> None:
    if (text := followed(schema, likes, seed)) is not None:
        check(schema, text)


def fits(text: str, grammar: Grammar, *, in_pieces: bool) -> bool:
    """Whether a grammar allows a text, spelled by long tokens or byte by byte."""
    tokens = sorted(range(len(TEXTS)), key=lambda token: -len(TEXTS[token]))
    matcher = COMPILER.compile(grammar)
    while text:
        piece = next((token for token in tokens if text.startswith(TEXTS[token])), None)
        if in_pieces and piece is not None:
            ids, text = [piece], text[len(TEXTS[piece]) :]
        else:
            ids, text = TOKENIZER(text[0], add_special_tokens=False)["input_ids"], text[1:]
        for token in ids:
            if matcher.done or token not in allowed(matcher):
                return False
            matcher.accept(token)
    return matcher.done or TOKENIZER.eos_token_id in allowed(matcher)


OPEN = {"type": "object", "properties": {"name": {}}, "additionalProperties": True}
CASES: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "keys": (
        OPEN,
        [
            '{"name": "a", "a":1,"b":2}',
            '{"a":{"a":1,"b":2}}',
            '{"x": [{"a":1}, {"a":1}]}',
            '{"":1}',
        ],
        [
            *('{"a":1,"a":2}', '{"name": 1, "na\\u006de": 2}', '{"a":1, "b":2,"a": 3}'),
            *('{"x": {"a":1,"b":2,"b":2}}', '{"x":[{"y":{"a":1,"a":1}}]}', '{"\\u0061": 1}'),
            '{"":1,"":2}',
        ],
    ),
    "escaped keys": (
        OPEN,
        ['{"\\"": 1, "\\"a": 2}', '{"\\n": 1, "\\\\n": 2, "n": 3}', '{"\\\\": 1, "\\\\\\"": 2}'],
        ['{"\\"": 1, "\\"": 2}', '{"\\n": 1, "\\n": 2}', '{"\\\\": 1, "\\\\": 2}', '{"\\/": 1}'],
    ),
    "patterns": (
        {"type": "object", "patternProperties": {"^x": {"type": "null"}}, "properties": {}},
        ['{"x": null, "xx": null}'],
        ['{"x": null, "x": null}', '{"y": null}', '{"\\u0078": null}'],
    ),
    "strings that look like keys": (
        {"type": "object"},
        ['{"a": "a", "b": "{\\"a\\":1,\\"a\\":2", "c": ["a", "a"]}'],
        ['{"a": "a", "a": "b"}'],
    ),
    "numbers": (
        {"type": "number"},
        ["1e99", "-1.5E+10", "9" * 200, "0." + "0" * 400, "0.5e-12"],
        ["1e999", "1e100", "1E+400", "9" * 201 + ".5", "9" * 400, "e9"],
    ),
    "any value": ({}, ["1e9", '[1, "1e999", 2]', '"' + "9" * 300 + '"'], ["[1e999]", "9" * 400]),
    "below 1": (
        {"type": "number", "exclusiveMaximum": 1, "exclusiveMinimum": 0},
        ["0.99", "0.5", "0.000001"],
        ["1", "0", "0.99999999999999999999", "0." + "0" * 400 + "1"],
    ),
    "large integers": (
        {"type": "integer", "minimum": 2**53 + 1},
        ["9007199254740994", str(2**63 - 1024)],
        ["9007199254740992", "9" * 30],
    ),
    "64 bits": (
        {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1},
        ["0", "-9000000000000000000"],
        ["99999999999999999999"],
    ),
    "dates": (
        {"type": "string", "format": "date"},
        ['"2024-02-29"', '"2000-02-29"', '"2023-12-31"'],
        ['"2023-02-29"', '"1900-02-29"', '"0000-01-01"', '"2023-04-31"'],
    ),
    "times": (
        {"type": "string", "format": "date-time"},
        ['"2024-02-29T23:59:59Z"', '"2024-01-01T00:00:00.123456+01:00"'],
        ['"2024-01-01T00:00:60Z"', '"2024-01-01T24:00:00Z"', '"2023-02-29T00:00:00Z"'],
    ),
    "characters": (
        {"type": "string"},
        ['"é\U0001f600"', '"\\n\\t\\"\\\\"', '"\\u0001"'],
        ['"\\ud800"', '"\x01"', '"\n"', '"\\x"'],
    ),
}


@pytest.mark.parametrize("in_pieces", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_what_is_allowed(name: str, in_pieces: bool) -> None:
    schema, good, bad = CASES[name]
    grammar = Grammar.json(rewritten(schema, "schema"), "schema")
    for text in good:
        read(text)
        assert fits(text, grammar, in_pieces=in_pieces), text
    for text in bad:
        assert not fits(text, grammar, in_pieces=in_pieces), text
