"""For any body: models and JSON Schema agree, and only `TaskArgsInvalid` is raised.

Bodies are made from good ones, by values at the limits of the published schemas (`edges`) and by
any others.
"""

import copy
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from schema import GenerationConfig, Task, TaskArgsInvalid, schemas
from schema.clients.openai import ChatCompletionRequest, CompletionRequest, OpenAIRequest
from tests.schema.edges import near, places, respelled
from tests.schema.examples import GOOD_CHATS, GOOD_COMPLETIONS, GOOD_TASKS
from tests.schema.malformed import PNG

TASK = Draft202012Validator(schemas()["task"])

# The same examples each time: a failure here must not depend on luck.
same_each_time = settings(
    derandomize=True,
    deadline=None,
    max_examples=400,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

NAMES = [
    "prompt_token_ids", "echo", "prompt_logprobs",
    "model", "messages", "tools", "generation_config", "template_args", "use_chat_template",
    "structured_output", "schema", "pattern", "choices",
    "tool_choice", "parallel_tool_calls", "function", "name", "parameters",
    "seed", "dtype", "quantize_bits", "role", "content", "tool_call_id", "tool_calls", "type",
    "text", "base64", "answer_format", "reasoning_content",
    "max_new_tokens", "stop_strings", "do_sample", "num_beams", "temperature", "typical_p", "top_k",
    "top_p", "min_p", "repetition_penalty", "frequency_penalty", "presence_penalty", "logit_bias",
    "logprobs", "num_return_sequences", "image", "<text>", "",
]  # fmt: skip
WORDS = [
    "user",
    "assistant",
    "tool",
    "system",
    "text",
    "image",
    "auto",
    "required",
    "clock",
    "json_schema",
    "json_object",
    "regex",
    "choice",
    "float16",
    PNG,
    "AA==",
    "A",
]
NUMBERS = [-1, 0, 1, 2, 4, 8, 64, 65, 0.0, 1.0, 0.5, 1e-9, 4.0, 2**32, 2**70, 1e300]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(WORDS),
    st.text(max_size=8),
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def mutated(draw: st.DrawFn) -> Any:
    """A good task, with a few things replaced, removed, added or doubled."""
    task = copy.deepcopy(draw(st.sampled_from(list(GOOD_TASKS.values()))))
    for _ in range(draw(st.integers(0, 3))):
        container, key, _ = draw(st.sampled_from(places(task)))
        action = draw(st.sampled_from(["replace", "replace", "remove", "add", "double"]))
        if action == "replace":
            container[key] = draw(values)
        elif action == "remove":
            del container[key]
        elif isinstance(container, dict):
            container[draw(st.sampled_from(NAMES))] = draw(values)
        else:
            container.append(copy.deepcopy(container[key]) if action == "double" else draw(values))
        if not places(task):
            break
    return task


@st.composite
def generation_configs(draw: st.DrawFn) -> Any:
    """A task with any settings, so that the rules between them are met often."""
    names = st.sampled_from(list(GenerationConfig.model_fields))
    choices = st.sampled_from([*NUMBERS, None, True, False, ["x"], {"5": 1}, {"05": 1}]) | scalars
    task = copy.deepcopy(GOOD_TASKS["the documented model"])
    task["generation_config"] = draw(st.dictionaries(names, choices, max_size=5))
    return task


# What the models refuse and JSON Schema cannot: `malformed` lists all of a task, with the reasons.
BEYOND_SCHEMA = (
    "must be at most num_beams",
    # A tool of a task is a free-form object, whose name JSON Schema does not see.
    "must be the name of one",
    "needs tools that have a name",
    # Of a request
    "must be 1, or as n",
    "log probabilities, and an answer may have at most",
    "which means the same",
    "must be base64",  # in a data: URL
    "at most 64 bits",  # in a free-form object
)


def beyond_schema(problem: str) -> bool:
    return any(known in problem for known in BEYOND_SCHEMA) or " images; " in problem


def agree(task: Any) -> None:
    valid = TASK.is_valid(task)
    try:
        Task.model_validate(task)
    except ValidationError as error:
        if not valid:
            return
        for detail in error.errors():
            if detail["type"] != "json_value":
                problem = detail.get("ctx", {}).get("problem", "")
                assert beyond_schema(problem), detail
    else:
        assert valid, list(TASK.iter_errors(task))


REQUESTS: dict[str, tuple[type[OpenAIRequest], Draft202012Validator, list[Any]]] = {
    name: (kind, Draft202012Validator(schemas()[name]), list(good.values()))
    for name, kind, good in (
        ("chat_completion_request", ChatCompletionRequest, GOOD_CHATS),
        ("completion_request", CompletionRequest, GOOD_COMPLETIONS),
    )
}


def agree_on_request(name: str, body: Any) -> None:
    """The schema says what the server says: the request is parsed, and then its task is made."""
    kind, schema, _ = REQUESTS[name]
    problem = None
    try:
        kind.parse(json.dumps(body), ("http", "https", "file")).task(0)
    except TaskArgsInvalid as error:
        problem = error.message
    faults = [fault.message[:200] for fault in schema.iter_errors(body)]
    if problem is None:
        assert not faults
    else:
        assert faults or beyond_schema(problem), problem


def parse(body: bytes | str) -> None:
    """As a server would: a task or a clean refusal."""
    try:
        Task.parse(body)
        return
    except TaskArgsInvalid as error:
        refusal = error
    assert len(refusal.message) < 2000
    json.dumps(refusal.to_dict(), ensure_ascii=False).encode()


@same_each_time
@given(mutated())
def test_mutated_tasks(task: Any) -> None:
    agree(task)
    parse(json.dumps(task))


@same_each_time
@given(near(list(GOOD_TASKS.values()), schemas()["task"]))
def test_tasks_near_a_limit(task: Any) -> None:
    agree(task)
    parse(json.dumps(task))


@pytest.mark.parametrize("name", REQUESTS)
def test_requests_near_a_limit(name: str) -> None:
    @same_each_time
    @given(near(REQUESTS[name][2], schemas()[name]))
    def check(body: Any) -> None:
        agree_on_request(name, body)

    check()


@pytest.mark.parametrize("name", REQUESTS)
def test_good_requests(name: str) -> None:
    kind, schema, good = REQUESTS[name]
    for body in good:
        schema.validate(body)
        made = kind.parse(json.dumps(body)).task(0)
        for floats in (True, False):
            other = respelled(body, floats=floats)
            schema.validate(other)
            assert kind.parse(json.dumps(other)).task(0) == made


@pytest.mark.parametrize("floats", [True, False])
def test_a_whole_number_may_be_written_in_both_ways(floats: bool) -> None:
    for task in GOOD_TASKS.values():
        other = respelled(task, floats=floats)
        TASK.validate(other)
        assert Task.parse(json.dumps(other)) == Task.parse(json.dumps(task))


@same_each_time
@given(generation_configs())
def test_any_settings(task: Any) -> None:
    agree(task)


@same_each_time
@given(values)
def test_any_json(value: Any) -> None:
    agree(value)
    parse(json.dumps(value, ensure_ascii=False))


@same_each_time
@given(st.binary(max_size=64) | st.text(max_size=64))
def test_any_bytes(body: bytes | str) -> None:
    parse(body)


@same_each_time
@given(
    st.sampled_from([json.dumps(task).encode() for task in GOOD_TASKS.values()]),
    st.integers(0, 400),
    st.integers(0, 20),
    st.binary(max_size=4) | st.sampled_from([b"\\ud800", b"NaN", b"1e999", b'"', b"[", b"}"]),
)
def test_damaged_bytes(body: bytes, at: int, cut: int, put: bytes) -> None:
    parse(body[:at] + put + body[at + cut :])
