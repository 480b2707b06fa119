"""Tools of the Responses API and of the Messages API: which the model gets, and what is refused."""

import json
from typing import Any, get_args, get_type_hints

import pytest
from anthropic.types.beta import BetaToolUnionParam
from openai.types.responses import ToolParam

from schema import Task, TaskArgsInvalid
from schema.clients.anthropic import MessagesRequest
from schema.clients.responses import ResponsesRequest
from tests.schema.clients.test_requests import KINDS, MESSAGES, PARAMETERS, RESPONSES, VALIDATORS

MESSAGE = {"role": "user", "content": "Hi"}


def _types(of: Any) -> set[str]:
    """The values of ``type`` that a client's tools may have."""
    hints = [get_type_hints(tool).get("type") for tool in get_args(of)]
    return {value for hint in hints for value in _literals(hint)}


def _literals(hint: Any) -> set[Any]:
    found = get_args(hint)
    return {each for one in found for each in (_literals(one) or {one})} - {type(None)}


def _offered(task: Task) -> list[str]:
    return [tool["function"]["name"] for tool in task.tools or ()]


@pytest.mark.parametrize("kind", sorted(_types(ToolParam) - {"function", "namespace"}))
@pytest.mark.parametrize("choice", [None, "auto", "none"])
def test_tools_of_openai_that_are_no_functions_are_not_offered(
    kind: str, choice: str | None
) -> None:
    """Each that OpenAI's client knows: what is left is the task without them."""
    other = {"type": kind, "name": "x", "description": "x"}
    function = {"type": "function", "name": "f", "parameters": PARAMETERS}
    fields = {"model": "m", "input": "Hi", "tool_choice": choice}
    for functions in ([], [function]):
        asked = fields | {"tools": [other, *functions, other]}
        added = fields | {"input": [{"type": "additional_tools", "tools": [other]}, MESSAGE]}
        for request in (asked, added | {"tools": functions}):
            VALIDATORS["responses_request"].validate(request)
            got = ResponsesRequest.parse(json.dumps(request)).task(0)
            assert got == ResponsesRequest.parse(json.dumps(fields | {"tools": functions})).task(0)


@pytest.mark.parametrize("kind", sorted(_types(BetaToolUnionParam) - {"custom"}))
def test_tools_of_anthropic_that_are_no_functions_are_not_offered(kind: str) -> None:
    other = {"type": kind, "name": "x", "cache_control": {"type": "ephemeral"}}
    function = {"name": "f", "input_schema": PARAMETERS}
    fields = MESSAGES[0]
    for functions in ([], [function]):
        asked = fields | {"tools": [other, *functions, other]}
        VALIDATORS["messages_request"].validate(asked)
        wanted = MessagesRequest.parse(json.dumps(fields | {"tools": functions})).task(0)
        assert MessagesRequest.parse(json.dumps(asked)).task(0) == wanted


SEARCH = {"type": "web_search", "name": "search"}


@pytest.mark.parametrize(
    ("name", "changed", "param"),
    [
        # What would be called is not there.
        ("responses_request", {"tools": [SEARCH], "tool_choice": "required"}, "tool_choice"),
        ("responses_request", {"tools": [SEARCH], "tool_choice": SEARCH}, "tool_choice"),
        (
            "responses_request",
            {"tools": [SEARCH], "tool_choice": {"type": "function", "name": "search"}},
            "tool_choice",
        ),
        ("messages_request", {"tools": [SEARCH], "tool_choice": {"type": "any"}}, "tool_choice"),
        (
            "messages_request",
            {
                "tools": [SEARCH, {"name": "f", "input_schema": PARAMETERS}],
                "tool_choice": {"type": "tool", "name": "search"},
            },
            "tool_choice.name",
        ),
        # A function that would be lost.
        (
            "responses_request",
            {"tools": [SEARCH, {"type": "functoin", "name": "f", "parameters": PARAMETERS}]},
            "tools.1.type",
        ),
        (
            "responses_request",
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "function"}]}]},
            "tools.0.tools.0.name",
        ),
        (
            "responses_request",
            {"tools": [{"type": "namespace", "name": "n", "tools": [{"type": "namespace"}]}]},
            "tools.0.tools.0.type",
        ),
        (
            "responses_request",
            {"input": [{"type": "additional_tools", "tools": [{"type": "function"}]}]},
            "input.0.tools.0.name",
        ),
        (
            "messages_request",
            {"tools": [SEARCH, {"type": "costum", "name": "f", "input_schema": PARAMETERS}]},
            "tools.1.type",
        ),
    ],
)
def test_what_is_lost_without_a_tool_is_refused_by_name(
    name: str, changed: dict[str, Any], param: str
) -> None:
    good = {"responses_request": RESPONSES[0], "messages_request": MESSAGES[0]}[name]
    asked = json.dumps(good | changed)
    with pytest.raises(TaskArgsInvalid) as caught:
        KINDS[name].parse(asked).task(0)
    assert caught.value.param == param


def test_errors_of_a_function_name_the_one_of_the_request() -> None:
    asked = ResponsesRequest.parse(json.dumps(RESPONSES[2]))
    said = "tools.0.function.parameters: bad; tools.1.function: bad"
    wanted = "tools.2.tools.1.parameters: bad; input.0.tools.0: bad"
    assert asked.renamed(said) == wanted
    other = MessagesRequest.parse(json.dumps(MESSAGES[1]))
    assert other.renamed("tools.0.function.parameters") == "tools.1.input_schema"


def test_functions_of_a_namespace_are_offered_and_come_back_under_its_name() -> None:
    task = ResponsesRequest.parse(json.dumps(RESPONSES[2])).task(0)
    assert _offered(task) == ["group__f", "late"]
    (message,) = task.messages
    assert message.tool_calls is not None
    assert message.tool_calls[0]["function"]["name"] == "group__f"
