"""Malformed tasks, and the `param` of the error that each must give.

The tests of the schema and those of the live server use the same corpus. `beyond_schema` says why
JSON Schema does not refuse the task too, where it cannot.
"""

import json
from dataclasses import dataclass
from typing import Any

NOT_JSON = "it is not JSON, or not JSON that all parsers read alike"
NO_COUNT = "JSON Schema cannot count through several arrays, nor levels"
NO_COMPARISON = "JSON Schema cannot compare two values"
NO_RECURSION = "free-form objects are described as such, without their insides"

TOOL: dict[str, Any] = {"type": "function", "function": {"name": "clock", "parameters": {}}}
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAFklEQVR42mO4oKBAEmIY1TCq"
    "YfhqAABLfxAQegypMgAAAABJRU5ErkJggg=="
)
GOOD: dict[str, Any] = {
    "model": "demo",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "image", "base64": PNG}, {"type": "text", "text": "What is it?"}],
        },
        {"role": "assistant", "tool_calls": [{"id": "a", **TOOL}]},
        {"role": "tool", "tool_call_id": "a", "content": "12:00"},
    ],
    "tools": [TOOL],
    "generation_config": {"max_new_tokens": 8},
    "template_args": {"enable_thinking": False},
}


@dataclass(frozen=True)
class Malformed:
    """One malformed task."""

    name: str
    body: bytes
    param: str | None
    beyond_schema: str | None = None


# Never valid as a model's name: what could name a file or hide something.
NO_MODEL_IDS = (
    "../demo",
    "demo/../../etc",
    "demo/..",
    "/etc/passwd",
    "~/models/demo",
    "./demo",
    ".",
    "Qwen//Qwen3-8B",
    "Qwen/",
    "/Qwen",
    "Qwen\\Qwen3-8B",
    "C:\\models",
    "demo\n",
    "de\u0000mo",
    "demo\u202e",
    "demo model",
    "file:///demo",
    "demo:",
    ":sql",
    "demo:sql:2",
    "demo:org/sql",
    "demo:../sql",
    "%2e%2e/demo",
    "-demo",
)

_DELETE = object()


def _case(path: str, value: Any, param: str | None = None, beyond: str | None = None) -> Malformed:
    """The good task with `value` at `path`; `param` is `path` unless the error is elsewhere."""
    # Not a deep copy, in which the tool that stands in two places would be one.
    task = json.loads(json.dumps(GOOD))
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = task
    for part in parents:
        place = place[part]
    if value is _DELETE:
        del place[last]
    else:
        place[last] = value
    body = json.dumps(task).encode()
    shown = "absent" if value is _DELETE else json.dumps(value)
    shown = shown if len(shown) <= 48 else f"{shown[:45]}..."
    return Malformed(f"{path}={shown}", body, param or path, beyond)


def _setting(name: str, value: Any, param: str | None = None) -> Malformed:
    return _case(f"generation_config.{name}", value, param)


def _settings(param: str, beyond: str | None = None, **settings: Any) -> Malformed:
    return _case("generation_config", settings, f"generation_config.{param}", beyond)


def _nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


_SCHEMA = "structured_output.schema"


def _form(param: str, beyond: str | None = None, **form: Any) -> Malformed:
    return _case("structured_output", form, param, beyond)


def _calls(param: str, beyond: str | None = None, **fields: Any) -> Malformed:
    task = GOOD | {"tool_choice": "required"} | fields
    return Malformed(f"calls, {json.dumps(fields)[:60]}", json.dumps(task).encode(), param, beyond)


_BODIES = [
    Malformed("empty body", b"", None, NOT_JSON),
    Malformed("white space", b" \n", None, NOT_JSON),
    Malformed("no JSON", b"model=demo&messages=hello", None, NOT_JSON),
    Malformed("cut off", json.dumps(GOOD).encode()[:-20], None, NOT_JSON),
    Malformed("two tasks", json.dumps(GOOD).encode() * 2, None, NOT_JSON),
    Malformed("not UTF-8", b'{"model": "caf\xe9"}', None, NOT_JSON),
    Malformed("UTF-16", json.dumps(GOOD).encode("utf-16"), None, NOT_JSON),
    Malformed("byte order mark", b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), None, NOT_JSON),
    Malformed("zero bytes", b"\0" * 64, None, NOT_JSON),
    Malformed("NaN", b'{"model": "demo", "seed": NaN}', None, NOT_JSON),
    Malformed("-Infinity", b'{"generation_config": {"temperature": -Infinity}}', None, NOT_JSON),
    Malformed("1e999", b'{"generation_config": {"temperature": 1e999}}', None, NOT_JSON),
    Malformed("1e-999", b'{"generation_config": {"temperature": 1e-999}}', None, NOT_JSON),
    Malformed("5000 digits", b'{"seed": ' + b"9" * 5000 + b"}", None, NOT_JSON),
    Malformed("key twice", b'{"model": "demo", "model": "other"}', None, NOT_JSON),
    Malformed("deep arrays", b"[" * 100_000 + b"]" * 100_000, None, NOT_JSON),
    Malformed("deep content", b'{"messages": ' + b'{"a": ' * 50_000, None, NOT_JSON),
    Malformed("array", json.dumps([GOOD]).encode(), None),
    Malformed("string", b'"hello"', None),
    Malformed("null", b"null", None),
    Malformed("number", b"7", None),
    Malformed("empty object", b"{}", "model"),
    Malformed(
        "20 000 unknown fields",
        json.dumps({f"x{i}": i for i in range(20_000)}).encode(),
        None,
    ),
    Malformed(
        "unknown field of half a megabyte",
        json.dumps({**GOOD, "x" * 500_000: 1}).encode(),
        "x" * 63 + "…",
    ),
]

_TASK = [
    _case("model", _DELETE),
    _case("model", ""),
    _case("model", None),
    _case("model", 7),
    _case("model", ["demo"]),
    _case("model", "m" * 513),
    *[_case("model", name) for name in NO_MODEL_IDS],
    _case("messages", _DELETE),
    _case("messages", []),
    _case("messages", None),
    _case("messages", "hello"),
    _case("messages", {"role": "user", "content": "hello"}),
    _case("messages", [{"role": "user", "content": "hi"}] * 4097),
    _case("prompt", "hello"),
    _case("max_tokens", 12),
    _case("temperature", 0.5),
    _case("stream", True),
    _case("Seed", 1),
    _case("<text>", 1),
    _case("seed", -1),
    _case("seed", 2**32),
    _case("seed", 10**300),
    _case("seed", 1.5),
    _case("seed", "42"),
    _case("seed", True),
    _case("seed", None),
    _case("dtype", "int8"),
    _case("dtype", None),
    _case("dtype", "Float16"),
    _case("quantize_bits", 5),
    _case("quantize_bits", "4"),
    _case("answer_format", "xml"),
    _case("answer_format", None),
    _case("tools", {"type": "function"}),
    _case("tools", ["clock"], "tools.0"),
    _case("tools", [{}] * 513),
    _case("tools.0.function.parameters", _nested(40), "tools.0.function", NO_RECURSION),
    _case("tool_choice", None),
    _case("tool_choice", "none"),
    _case("tool_choice", ["auto"]),
    _case("tool_choice", {}, "tool_choice.function"),
    _case("tool_choice", {"function": {"name": "clock"}}, "tool_choice.function"),
    _case("tool_choice", {"function": ""}, "tool_choice.function"),
    _case("tool_choice", {"function": "clock", "type": "function"}, "tool_choice.type"),
    _case("tool_choice", {"function": "watch"}, "tool_choice.function", NO_COMPARISON),
    _case("parallel_tool_calls", None),
    _calls("tool_choice", tools=[]),
    _calls("tool_choice", tools=None),
    _calls("tool_choice", tools=[{"type": "search"}], beyond=NO_RECURSION),
    _calls("tool_choice", structured_output={"type": "json_object"}),
    _calls("tool_choice", generation_config={"num_beams": 2}),
    _calls("tools", tools=[{"name": "f" * 70_000}], beyond=NO_RECURSION),
    _calls(
        "tools",
        tools=[{"name": "f", "parameters": {"enum": ["x" * 70_000]}}],
        beyond=NO_RECURSION,
    ),
    _case("template_args", "x"),
    _case("template_args", [1]),
    _case("use_chat_template", "no"),
    _case("response_format", {"type": "json_object"}),
    _case("structured_output", "json"),
    _case("structured_output", {}, "structured_output.type"),
    _case("structured_output", {"type": "lark"}, "structured_output.type"),
    _case("structured_output", {"type": ["regex"]}, "structured_output.type"),
    _case("structured_output", {"type": "json_schema"}, _SCHEMA),
    _case("structured_output", {"type": "json_schema", "schema": True}, _SCHEMA),
    _case("structured_output", {"type": "json_schema", "schema": "{}"}, _SCHEMA),
    _form(_SCHEMA, NO_RECURSION, type="json_schema", schema={"enum": ["x" * 70_000]}),
    _form(f"{_SCHEMA}.x-guidance", type="json_schema", schema={"x-guidance": {}}),
    _form(f"{_SCHEMA}.const", NO_RECURSION, type="json_schema", schema={"const": 2**70}),
    _form(f"{_SCHEMA}.a", NO_RECURSION, type="json_schema", schema=_nested(40)),
    _form("structured_output.json_schema", type="json_schema", schema={}, json_schema={}),
    _form("structured_output.strict", type="json_schema", schema={}, strict=True),
    _form("structured_output.schema", type="json_object", schema={}),
    _form("structured_output.pattern", type="regex"),
    _form("structured_output.pattern", type="regex", pattern=""),
    _form("structured_output.pattern", type="regex", pattern="a" * 4097),
    _form("structured_output.choices", type="choice", choices=[]),
    _form("structured_output.choices", type="choice", choices="a"),
    _form("structured_output.choices", type="choice", choices=["a"] * 1001),
    _form("structured_output.choices.1", type="choice", choices=["a", ""]),
    _form("structured_output.choices.0", type="choice", choices=["a" * 1025]),
    Malformed(
        "a form and beams",
        json.dumps(
            GOOD
            | {"structured_output": {"type": "json_object"}, "generation_config": {"num_beams": 2}}
        ).encode(),
        "structured_output",
    ),
    _case("template_args", {"n": 2**70}, "template_args.n", NO_RECURSION),
    _case("template_args", {"s": "\ud800"}, "template_args.s", NO_RECURSION),
    Malformed("brackets", b"[" + b"[]," * 1_000_000 + b"[]]", None, NOT_JSON),
]


def _of_ids(ids: Any, param: str = "prompt_token_ids", **fields: Any) -> Malformed:
    """A task whose prompt is token ids."""
    body = json.dumps({"model": "m", "prompt_token_ids": ids} | fields)
    return Malformed(f"ids, {body[:60]}", body.encode(), param)


_TOKEN_IDS = [
    _of_ids([]),
    _of_ids("1, 2"),
    _of_ids([1, -1], "prompt_token_ids.1"),
    _of_ids([1, 2**31], "prompt_token_ids.1"),
    _of_ids([1, True], "prompt_token_ids.1"),
    _of_ids([1, "2"], "prompt_token_ids.1"),
    _of_ids([[1]], "prompt_token_ids.0"),
    _of_ids([1], messages=GOOD["messages"]),
    _of_ids(None, "messages"),
    _of_ids([1], "echo", echo=1),
]

_USER = "messages.1.content"
_MESSAGES = [
    _case("messages.0", None),
    _case("messages.0", "hello"),
    _case("messages.0", {}, "messages.0.role"),
    _case("messages.0.role", _DELETE),
    _case("messages.0.role", "developer"),
    _case("messages.0.role", 1),
    _case("messages.0.name", 5),
    _case("messages.0.name", "n" * 257),
    _case("reasoning_effort", 5),
    _case("messages.0.content", _DELETE),
    _case("messages.0.content", None),
    _case("messages.0.content", 5),
    _case("messages.0.content", {"type": "text", "text": "hi"}),
    _case("messages.0.content", "half a pair: \ud83d", beyond=NOT_JSON),
    _case("messages.0.content", "long " * 2_000_000),
    _case("messages.0.tool_calls", [TOOL]),
    _case("messages.1.tool_call_id", "a"),
    _case("messages.1.reasoning_content", "Hm."),
    _case("messages.2.reasoning_content", 5),
    _case("messages.2.tool_calls", ["clock"], "messages.2.tool_calls.0"),
    _case("messages.2.tool_calls", TOOL),
    _case("messages.3.tool_call_id", 7),
    _case("messages.3.content", _DELETE),
    _case(_USER, ["hello"], f"{_USER}.0"),
    _case(_USER, [None], f"{_USER}.0"),
    _case(_USER, [{"text": "hi"}], f"{_USER}.0.type"),
    _case(_USER, [{"type": ["text"], "text": "hi"}], f"{_USER}.0.type"),
    _case(_USER, [{"type": "image_url", "image_url": {"url": "x"}}], f"{_USER}.0.type"),
    _case(_USER, [{"type": "text", "text": "hi"}] * 1025),
    _case(_USER, [{"type": "image", "base64": PNG}] * 65, "messages"),
    _case(
        "messages",
        [{"role": "user", "content": [{"type": "image", "base64": PNG}]}] * 65,
        beyond=NO_COUNT,
    ),
    _case(f"{_USER}.1", {"type": "text"}, f"{_USER}.1.text"),
    _case(f"{_USER}.1.text", 5),
    _case(f"{_USER}.1.base64", PNG),
    _case(f"{_USER}.0.text", "hi"),
    _case(f"{_USER}.0.detail", "high"),
    _case(f"{_USER}.0.base64", _DELETE),
    _case(f"{_USER}.0.base64", ""),
    _case(f"{_USER}.0.base64", None),
    _case(f"{_USER}.0.base64", "not base64!"),
    _case(f"{_USER}.0.base64", "AAAAA"),
    _case(f"{_USER}.0.base64", "AAA=="),
    _case(f"{_USER}.0.base64", "AA="),
    _case(f"{_USER}.0.base64", " \n"),
    _case(f"{_USER}.0.base64", "A==="),
    _case(f"{_USER}.0.base64", "===="),
    _case(f"{_USER}.0.base64", "AA==AAAA"),
    _case(f"{_USER}.0.base64", "AAAA\u00a0"),
    _case(f"{_USER}.0.base64", "AA-_"),
    _case(f"{_USER}.0.base64", f"data:image/png;base64,{PNG}"),
    _case(f"{_USER}.0.base64", "https://example.org/cat.png"),
]

_GENERATION = [
    _case("generation_config", []),
    _case("generation_config", "greedy"),
    _setting("max_tokens", 5),
    _setting("eos_token_id", 5),
    _setting("max_new_tokens", 0),
    _setting("max_new_tokens", 10**7),
    _setting("max_new_tokens", "8"),
    _setting("max_new_tokens", 8.5),
    _setting("max_new_tokens", True),
    _setting("stop_strings", "###"),
    _setting("stop_strings", [""], "generation_config.stop_strings.0"),
    _setting("stop_strings", ["a", 5], "generation_config.stop_strings.1"),
    _setting("stop_strings", ["a"] * 17),
    _setting("stop_strings", ["a" * 257], "generation_config.stop_strings.0"),
    _setting("do_sample", 1),
    _setting("do_sample", "true"),
    _setting("num_beams", 0),
    _setting("num_beams", 65),
    _setting("temperature", -0.1),
    _setting("temperature", 100.5),
    _setting("temperature", 1e-9),
    _setting("temperature", "0.7"),
    _setting("temperature", True),
    _setting("temperature", 10**400),
    _setting("typical_p", 0),
    _setting("typical_p", 1.1),
    _setting("top_k", -1),
    _setting("top_k", 2**31),
    _setting("top_p", -0.1),
    _setting("top_p", 1.01),
    _setting("min_p", -0.01),
    _setting("min_p", 2),
    _setting("repetition_penalty", 0),
    _setting("repetition_penalty", 1000),
    _setting("frequency_penalty", 2.5),
    _setting("frequency_penalty", "1"),
    _setting("presence_penalty", -2.01),
    _setting("presence_penalty", False),
    _setting("logit_bias", ["5"]),
    _setting("logit_bias", {"5": 100.5}, "generation_config.logit_bias.5"),
    _setting("logit_bias", {"5": "1"}, "generation_config.logit_bias.5"),
    _setting("logit_bias", {"fox": 1}, "generation_config.logit_bias.fox"),
    _setting("logit_bias", {"-1": 1}, "generation_config.logit_bias.-1"),
    _setting("logit_bias", {"05": 1}, "generation_config.logit_bias.05"),
    _setting("logit_bias", {"5\n": 1}, "generation_config.logit_bias.5\n"),
    _setting("logit_bias", {"\u0665": 1}, "generation_config.logit_bias.\u0665"),
    _setting("logit_bias", {"99999999999": 1}, "generation_config.logit_bias.99999999999"),
    _setting("logit_bias", {str(i): 1 for i in range(1025)}, "generation_config.logit_bias"),
    _setting("logprobs", -1),
    _setting("logprobs", 21),
    _setting("logprobs", True),
    _setting("prompt_logprobs", -1),
    _setting("prompt_logprobs", 21),
    _setting("top_logprobs", 2),
    _settings("logprobs", logprobs=1, num_beams=2),
    _setting("num_return_sequences", 0),
    _setting("num_return_sequences", 65),
    _settings("num_return_sequences", NO_COMPARISON, num_return_sequences=4, num_beams=3),
]

_TEXT = {"type": "text", "text": "a"}
_BULK = [
    Malformed(
        "too many blocks in all messages",
        json.dumps(GOOD | {"messages": [{"role": "user", "content": [_TEXT] * 1000}] * 5}).encode(),
        "messages",
        NO_COUNT,
    ),
    Malformed(
        "too many values in all tools",
        json.dumps(GOOD | {"tools": [TOOL | {"a": [0] * 30_000}] * 4}).encode(),
        None,
        NO_COUNT,
    ),
    Malformed(
        "too many values in template_args",
        json.dumps(GOOD | {"template_args": {"a": [0] * 100_001}}).encode(),
        None,
        NO_RECURSION,
    ),
]

MALFORMED = [*_BODIES, *_TASK, *_TOKEN_IDS, *_MESSAGES, *_GENERATION, *_BULK]
