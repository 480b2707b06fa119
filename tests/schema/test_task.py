"""What `Task` accepts and refuses, and its error messages."""

import json
import pickle
from typing import Any

import pytest

from schema import (
    GenerationConfig,
    ImageBlock,
    Message,
    Task,
    TaskArgsInvalid,
    TextBlock,
)
from tests.schema.examples import GOOD_TASKS
from tests.schema.malformed import GOOD, MALFORMED, PNG, Malformed


def refusal(body: bytes | str) -> TaskArgsInvalid:
    with pytest.raises(TaskArgsInvalid) as caught:
        Task.parse(body)
    return caught.value


@pytest.mark.parametrize("fields", GOOD_TASKS.values(), ids=GOOD_TASKS)
def test_good_tasks_are_taken(fields: dict[str, Any]) -> None:
    task = Task.parse(json.dumps(fields))
    assert task == Task.from_fields(**fields)
    assert task == Task.parse(task.model_dump_json())
    assert task == pickle.loads(pickle.dumps(task))


@pytest.mark.parametrize("case", MALFORMED, ids=lambda case: case.name)
def test_malformed_tasks_are_refused(case: Malformed) -> None:
    error = refusal(case.body)
    assert error.param == case.param
    assert error.http_status == 400
    # Short, printable, and about the field.
    assert len(error.message) < 1200
    json.dumps(error.to_dict(), ensure_ascii=False).encode()
    assert case.param is None or case.param in error.message


def test_malformed_corpus_is_large_and_its_names_differ() -> None:
    assert len(MALFORMED) >= 60
    assert len({case.name for case in MALFORMED}) == len(MALFORMED)


def with_settings(**settings: Any) -> str:
    return json.dumps({**GOOD, "generation_config": settings})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            b"\xef\xbb\xbf" + with_settings().encode(),
            "The body begins with a byte order mark; leave it out.",
        ),
        (
            '{"seed": ' + "9" * 5000 + "}",
            "The body has an integer of thousands of digits; the largest is 18446744073709551615.",
        ),
        (
            with_settings(top_p=1.5),
            "generation_config.top_p: must be at most 1, not 1.5.",
        ),
        (
            with_settings(stop_strings="###"),
            'generation_config.stop_strings: must be an array, not "###".',
        ),
        (
            with_settings(max_tokens=5),
            "generation_config.max_tokens: is not a known field; did you mean max_new_tokens?",
        ),
        (
            with_settings(num_return_sequences=4, num_beams=3),
            "generation_config.num_return_sequences: must be at most num_beams, 3, and is 4; "
            "raise num_beams.",
        ),
        (
            json.dumps({**GOOD, "temperature": 1}),
            "temperature: is not a known field; did you mean generation_config.temperature?",
        ),
        (
            json.dumps({**GOOD, "mesages": []}),
            "mesages: is not a known field; did you mean messages?",
        ),
        (
            json.dumps({**GOOD, "zzz": []}),
            "zzz: is not a known field; the fields here are model, messages, prompt_token_ids, "
            "tools, tool_choice, parallel_tool_calls, reasoning_effort, generation_config, "
            "structured_output, template_args, use_chat_template, echo, return_token_ids, "
            "receipt, answer_format, seed, dtype, quantize_bits.",
        ),
        (
            json.dumps({**GOOD, "dtype": "int8"}),
            'dtype: must be "float16", "bfloat16", "float32" or "auto", not "int8".',
        ),
        (
            json.dumps({"model": "m" * 1_000_000}),
            "model: must have at most 512 characters, not a string of 1000000 characters.",
        ),
        (
            '{"model": "m",\n"seed": }',
            "The body is not valid JSON: Expecting value at line 2, column 9.",
        ),
    ],
)
def test_messages_name_field_limit_and_way_out(body: bytes | str, message: str) -> None:
    assert refusal(body).message == message


def test_at_most_five_problems_are_listed_and_the_rest_counted() -> None:
    message = refusal(json.dumps({**GOOD, **{f"unknown{i}": i for i in range(8)}})).message
    assert message.startswith("The task has 8 problems: unknown0: ")
    assert "unknown4" in message
    assert "unknown5" not in message
    assert message.endswith("; and 3 more.")


def test_defaults() -> None:
    task = Task.from_fields(model="m", messages=[{"role": "user", "content": "hi"}])
    assert (task.seed, task.dtype, task.quantize_bits, task.tools) == (0, "auto", None, None)
    assert task.generation_config == GenerationConfig()
    assert set(task.generation_config.model_dump().values()) == {None}


def test_from_fields_takes_the_parts_as_objects() -> None:
    blocks: list[TextBlock | ImageBlock] = [TextBlock(text="What is it?"), ImageBlock(base64=PNG)]
    task = Task.from_fields(
        model="m",
        messages=[Message(role="user", content=blocks)],
        generation_config=GenerationConfig(top_k=3),
    )
    assert task.messages[0].content == blocks
    assert task.generation_config.top_k == 3


def endless() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["again"] = value
    return value


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": ({"role": "user", "content": "hi"},)}, "messages"),
        ({"model": b"m"}, "model"),
        ({"seed": 10**5000}, "seed"),
        ({"seed": object()}, "seed"),
        ({"cls": 1}, "cls"),
        ({"generation_config": {"temperature": float("nan")}}, "generation_config.temperature"),
        ({"generation_config": {"top_p": float("inf")}}, "generation_config.top_p"),
        ({"template_args": endless()}, "template_args.again"),
        ({"template_args": {"x": float("nan")}}, "template_args.x"),
        ({"template_args": {"x": {1: 2}}}, "template_args.x"),
        ({"template_args": {"x": [set()]}}, "template_args.x.0"),
        ({"tools": [len]}, "tools.0"),
    ],
)
def test_from_fields_is_as_strict(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(TaskArgsInvalid) as caught:
        Task.from_fields(**{**GOOD, **fields})
    assert caught.value.param == param


@pytest.mark.parametrize("key", [1, None, "\ud800"])
def test_from_fields_survives_odd_keys(key: Any) -> None:
    with pytest.raises(TaskArgsInvalid):
        Task.from_fields(**{**GOOD, "messages": [{"role": "user", "content": "x", key: 1}]})


def test_split_images_takes_all_pixels_in_order() -> None:
    image = {"type": "image", "base64": "AAAA"}
    content = [{"type": "image", "base64": PNG}, {"type": "text", "text": "and"}, image]
    messages = [{"role": "user", "content": content}, {"role": "tool", "content": [image]}]
    task = Task.from_fields(model="m", messages=messages, seed=3)
    before = task.model_dump()

    light, images = task.split_images()

    assert images == [PNG, "AAAA", "AAAA"]
    assert task.model_dump() == before
    dumped = light.model_dump()
    for message in before["messages"]:
        for block in message["content"]:
            if block["type"] == "image":
                block["base64"] = ""
    assert dumped == before
    assert pickle.loads(pickle.dumps(light)) == light


def test_split_images_of_a_text_task_is_that_task() -> None:
    task = Task.from_fields(model="m", messages=[{"role": "user", "content": "hi"}])
    light, images = task.split_images()
    assert light is task
    assert images == []


def test_tasks_are_frozen() -> None:
    task = Task.from_fields(**GOOD)
    with pytest.raises(ValueError, match="frozen"):
        task.seed = 1
