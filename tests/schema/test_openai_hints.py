"""Fields of OpenAI's requests that are accepted and change nothing, and messages that come back."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from schema import Task, TaskArgsInvalid, schemas
from schema.clients.fields import Hint, marked
from schema.clients.openai import ChatCompletionRequest, CompletionRequest
from schema.clients.openai.messages import ChatMessage, ImageUrl, TextPart
from schema.clients.openai.request import StreamOptions
from tests.schema.malformed import PNG, TOOL
from tests.schema.test_openai import ASK, CHAT, STRICT, URL, _image, chat

COMPLETION = Draft202012Validator(schemas()["completion_request"])
API = (Path(__file__).parents[2] / "docs" / "api.md").read_text(encoding="utf-8")

ANY_VALUES: list[Any] = [None, True, 0, -1.5, "x" * 600, [], ["a"], {}, {"a": [{"b": None}]}]


@pytest.mark.parametrize("value", ANY_VALUES, ids=lambda value: json.dumps(value)[:16])
def test_a_hint_takes_any_value_and_changes_nothing(value: Any) -> None:
    hints = dict.fromkeys(marked(ChatCompletionRequest, Hint), value)
    assert {"user", "metadata", "store", "service_tier", "prompt_cache_key"} <= set(hints)
    part = {"type": "image_url", "image_url": {"url": URL, "detail": value}}
    fields: dict[str, Any] = {
        "messages": [{"role": "user", "content": [part]}],
        "stream": True,
        "stream_options": {"include_obfuscation": value},
        **hints,
    }
    CHAT.validate({"model": "m"} | fields)
    request = chat(**fields)
    assert request == chat(messages=_image(url=URL), stream=True, stream_options={})
    assert "x" * 600 not in repr(request)


@pytest.mark.parametrize(
    "model",
    [ChatCompletionRequest, CompletionRequest, ChatMessage, TextPart, ImageUrl, StreamOptions],
)
def test_the_documentation_lists_every_hint(model: Any) -> None:
    section = API.partition("### Hints")[2].partition("\n## ")[0]
    assert set(marked(model, Hint)) <= set(re.findall(r"`([a-z_]+)`", section))


NEUTRAL: list[dict[str, Any]] = [
    {"top_k": -1},
    {"top_k": 0},
    {"top_k": -1.0},
    {"functions": [], "function_call": "none"},
    {"functions": None, "function_call": "auto"},
    {"tools": []},
    {"tools": None, "tool_choice": "none"},
    {"tool_choice": "auto", "parallel_tool_calls": True},
    {"stop": ""},
    {"stop": [""]},
    {"stop": []},
    {"logprobs": False, "top_logprobs": 0},
    {"logprobs": None, "top_logprobs": 0},
    {"max_tokens": 4, "max_completion_tokens": 4},
    {"max_tokens": 4.0},
    {"n": 1.0},
    {"seed": None},
    {"logit_bias": {}},
    {"logit_bias": None},
    {"frequency_penalty": 0, "presence_penalty": 0.0},
    {"response_format": {"type": "text"}},
    {"stream_options": {"include_usage": True}},
    {"stream": False, "stream_options": None},
    {"temperature": 1e-9},
    {"modalities": ["text"]},
    {"min_tokens": 0, "ignore_eos": False, "skip_special_tokens": True, "stop_token_ids": []},
    {"use_beam_search": False, "length_penalty": 1.0, "include_stop_str_in_output": False},
    {"add_generation_prompt": True, "continue_final_message": False, "documents": []},
]


def _meaning(task: Task) -> dict[str, Any]:
    """A task, with the settings that are off left out."""
    fields = task.model_dump()
    off = (None, {"top_k": 0, "frequency_penalty": 0.0, "presence_penalty": 0.0})
    settings = fields["generation_config"].items()
    fields["generation_config"] = {
        name: value
        for name, value in settings
        if value is not None and off[1].get(name, object()) != value
    }
    return fields


@pytest.mark.parametrize("fields", NEUTRAL, ids=json.dumps)
def test_a_neutral_value_means_what_its_absence_means(fields: dict[str, Any]) -> None:
    base = {"max_tokens": 4, "temperature": 0}
    CHAT.validate({"model": "m", "messages": ASK} | base | fields)
    assert _meaning(chat(**base | fields).task(0)) == _meaning(chat(**base).task(0))


@pytest.mark.parametrize(
    "fields",
    [
        {"best_of": 1},
        {"best_of": 3, "n": 3},
        {"suffix": ""},
        {"echo": False},
        {"stop": [""]},
        {"top_k": -1},
        {"user": 5},
        {"logit_bias": {}},
        {"stream_options": {"include_obfuscation": False}},
    ],
    ids=json.dumps,
)
def test_neutral_values_of_completions(fields: dict[str, Any]) -> None:
    base = {"model": "m", "prompt": "Once", "temperature": 0}
    COMPLETION.validate(base | fields)
    count = {"n": fields["n"]} if "n" in fields else {}
    expected = CompletionRequest.parse(json.dumps(base | count)).task(0)
    assert _meaning(CompletionRequest.parse(json.dumps(base | fields)).task(0)) == _meaning(
        expected
    )


def test_calls_that_are_not_forced_may_be_strict_and_single() -> None:
    fields: dict[str, Any] = {"tools": [TOOL, STRICT], "parallel_tool_calls": False}
    CHAT.validate({"model": "m", "messages": ASK} | fields)
    task = chat(**fields).task(0)
    assert (task.tool_choice, task.parallel_tool_calls) == ("auto", False)
    assert task.tools == [TOOL, STRICT]


ADDED: dict[str, Any] = {
    "refusal": None,
    "annotations": [{"type": "url_citation"}],
    "audio": None,
    "function_call": None,
    "parsed": {"a": 1},
    "reasoning": "Hm.",
    "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}],
    "thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "x"}],
    "provider_specific_fields": {"citations": None},
    "cache_control": {"type": "ephemeral"},
    "id": "msg_1",
    "images": [],
    "prefix": False,
}


@pytest.mark.parametrize("name", ADDED)
def test_what_others_have_added_to_an_answer_is_left_out(name: str) -> None:
    plain = [*ASK, {"role": "assistant", "content": "Hello"}, *ASK]
    more = [*ASK, {"role": "assistant", "content": "Hello", name: ADDED[name]}, *ASK]
    CHAT.validate({"model": "m", "messages": more})
    assert chat(messages=more).task(0) == chat(messages=plain).task(0)


@pytest.mark.parametrize(
    ("message", "meant"),
    [
        ({"role": "assistant"}, {"role": "assistant"}),
        ({"role": "assistant", "content": None}, {"role": "assistant"}),
        ({"role": "assistant", "content": ""}, {"role": "assistant", "content": ""}),
        (
            {"role": "assistant", "content": "", "tool_calls": []},
            {"role": "assistant", "content": ""},
        ),
        ({"role": "assistant", "content": []}, {"role": "assistant", "content": []}),
        ({"role": "user", "content": ""}, {"role": "user", "content": ""}),
        ({"role": "user", "content": []}, {"role": "user", "content": []}),
        (
            {"role": "user", "content": [{"type": "text", "text": ""}]},
            {"role": "user", "content": [{"type": "text", "text": ""}]},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]},
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
        ),
        ({"role": "tool", "content": ""}, {"role": "tool", "content": ""}),
        (
            {"role": "assistant", "content": None, "refusal": "I cannot."},
            {"role": "assistant", "content": "I cannot."},
        ),
        (
            {"role": "assistant", "content": [{"type": "refusal", "refusal": "I cannot."}]},
            {"role": "assistant", "content": [{"type": "text", "text": "I cannot."}]},
        ),
        (
            {"role": "developer", "content": "x", "name": "Ann", "tool_calls": []},
            {"role": "system", "content": "x", "name": "Ann"},
        ),
    ],
    ids=json.dumps,
)  # fmt: skip
def test_what_a_message_means(message: dict[str, Any], meant: dict[str, Any]) -> None:
    CHAT.validate({"model": "m", "messages": [message]})
    task = Task.from_fields(model="m", messages=[meant])
    assert chat(messages=[message]).task(0).messages == task.messages


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{PNG}",
        f"data:application/octet-stream;base64,{PNG}",
        f"data:image/png;charset=utf-8;base64,{PNG}",
        f"data:;base64,{PNG}",
        f"DATA:image/PNG;BASE64,{PNG}",
        f"data:image/png;base64,{PNG[:20]}\n{PNG[20:]}\r\n",
        f"data:image/png;base64,{PNG.rstrip('=')}",
        "data:image/png;base64," + PNG.replace("+", "%2B").replace("=", "%3D"),
        "data:image/png;base64," + PNG.replace("+", "%2b").replace("=", "%3d") + "%0D%0A%20",
    ],
)
def test_forms_of_data_urls(url: str) -> None:
    CHAT.validate({"model": "m", "messages": _image(url=url)})
    assert chat(messages=_image(url=url)).task(0) == chat(messages=_image(url=URL)).task(0)


@pytest.mark.parametrize("escape", ["%41", "%4", "%", "%00", "%25"])
def test_escapes_that_base64_never_needs_are_no_base64(escape: str) -> None:
    """They are not decoded: a body of them would take half a minute and gigabytes."""
    url = f"data:image/png;base64,{PNG[:4]}{escape * 4}{PNG[4:]}"
    with pytest.raises(TaskArgsInvalid, match="base64") as caught:
        chat(messages=_image(url=url)).task(0)
    assert caught.value.param == "messages.0.content.0.image_url.url"
