"""Completions of OpenAI's clients: the tasks that they become, and errors."""

import json
from typing import Any

import pytest

from schema import Task, TaskArgsInvalid
from schema.clients.openai import CompletionRequest


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.parse(json.dumps({"model": "m", "prompt": "Once"} | fields))


def test_what_a_request_means() -> None:
    fields = {"n": 2, "stop": "a", "best_of": 1, "echo": False, "temperature": 0.5, "top_k": 3}
    fields |= {"presence_penalty": 0.5, "logprobs": 2}
    assert completion(**fields).task(seed=5) == Task.from_fields(
        model="m",
        messages=[{"role": "user", "content": "Once"}],
        use_chat_template=False,
        answer_format="message",
        generation_config={
            "max_new_tokens": 16,
            "num_return_sequences": 2,
            "stop_strings": ["a"],
            "do_sample": True,
            "temperature": 0.5,
            "top_p": 1.0,
            "top_k": 3,
            "presence_penalty": 0.5,
            "logprobs": 2,
        },
        seed=5,
    )
    limit = completion(max_tokens=3).task(0).generation_config.max_new_tokens
    assert limit == 3


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [1, 2]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"max_completion_tokens": 1}, "max_completion_tokens"),
        ({"tools": []}, "tools"),
        ({"top_p": 2}, "top_p"),
    ],
)
def test_what_is_refused_names_its_field(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(TaskArgsInvalid) as caught:
        completion(**fields).task(0)
    assert caught.value.param == param
    assert param in caught.value.message


@pytest.mark.parametrize("param", ["messages", "messages.0.content"])
def test_later_errors_name_the_prompt(param: str) -> None:
    with pytest.raises(TaskArgsInvalid) as caught, completion().own_terms():
        raise TaskArgsInvalid(f"{param}: too long; shorten the messages", param)
    assert caught.value.param == "prompt"
    assert caught.value.message == "prompt: too long; shorten the prompt"
