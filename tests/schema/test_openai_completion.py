"""Completions of OpenAI's clients: the tasks that they become, and errors."""

import json
from typing import Any

import pytest

from schema import Task, TaskArgsInvalid
from schema.clients.openai import CompletionRequest


def completion(**fields: Any) -> CompletionRequest:
    return CompletionRequest.parse(json.dumps({"model": "m", "prompt": "Once"} | fields))


def tasks_of(fields: dict[str, Any]) -> list[Task]:
    asked = completion(**fields)
    return [asked.task(0, number) for number in range(asked.num_prompts)]


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
        ({"prompt": []}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt.1"),
        ({"prompt": ["a", [1]]}, "prompt.1"),
        ({"prompt": ["a", ""]}, "prompt.1"),
        ({"prompt": [1, "a"]}, "prompt.1"),
        ({"prompt": [1, True]}, "prompt.1"),
        ({"prompt": [1, -1]}, "prompt.1"),
        ({"prompt": [[1], []]}, "prompt.1"),
        ({"prompt": [[1], [1, None]]}, "prompt.1.1"),
        ({"prompt": ["a"] * 513}, "prompt"),
        ({"prompt": [[1] * 1000] * 500 + [[1] * 600_000]}, "prompt"),
        ({"prompt": ["a"] * 512, "n": 5}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1, "echo": True}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"best_of": 2}, "best_of"),
        ({"echo": 1}, "echo"),
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
        tasks_of(fields)
    assert caught.value.param == param
    assert param in caught.value.message


def test_log_probabilities_of_all_prompts_are_counted_together() -> None:
    fits: dict[str, Any] = {"prompt": ["a"] * 64, "n": 32, "logprobs": 20, "max_tokens": 97}
    assert completion(**fits).num_prompts == 64
    for more in ({"max_tokens": 98}, {"prompt": ["a"] * 65, "n": 31, "max_tokens": 100}):
        with pytest.raises(TaskArgsInvalid, match="at most 4194304: send fewer") as caught:
            tasks_of(fits | more)
        assert caught.value.param == "logprobs"
    assert completion(**fits | {"max_tokens": 2000, "logprobs": 0}).num_prompts == 64
    assert completion(**fits | {"max_tokens": 9000, "logprobs": None}).num_prompts == 64


def test_prompts_in_every_form() -> None:
    """A task for each, with the same seed and settings."""
    many = completion(prompt=["a", "b"])
    tasks = [many.task(4, number) for number in range(many.num_prompts)]
    assert tasks == [completion(prompt="a").task(4), completion(prompt="b").task(4)]
    ids = completion(prompt=[[1, 2], [3]])
    assert [ids.task(0, number).prompt_token_ids for number in (0, 1)] == [[1, 2], [3]]
    assert completion(prompt=[1, 2]).task(0) == ids.task(0)
    assert completion(prompt=[1, 2]).num_prompts == completion(prompt=["a"]).num_prompts == 1


def test_echo_asks_for_the_prompt() -> None:
    def asked(**fields: Any) -> tuple[bool, int | None, int | None]:
        task = completion(**fields).task(0)
        return task.echo, task.generation_config.prompt_logprobs, task.generation_config.logprobs

    assert asked(logprobs=3) == (False, None, 3)
    assert asked(echo=True) == (True, None, None)
    assert asked(echo=True, logprobs=3) == (True, 3, 3)
    assert asked(echo=True, max_tokens=0) == (True, 0, None)


@pytest.mark.parametrize(
    ("prompt", "param", "message", "means"),
    [
        (["a", "b"], "messages", "messages: too long; shorten the messages", "prompt.1"),
        ([[1], [2]], "prompt_token_ids.5", "prompt_token_ids.5 is 7", "prompt.1.5"),
        (["a", "b"], "generation_config.prompt_logprobs", "it is 3", "logprobs"),
    ],
)
def test_later_errors_name_one_of_the_prompts(
    prompt: Any, param: str, message: str, means: str
) -> None:
    found = completion(prompt=prompt).in_own_terms(TaskArgsInvalid(message, param), 1)
    assert found.param == means
    assert "prompt.1" in found.message
    assert "messages" not in found.message


@pytest.mark.parametrize("param", ["messages", "messages.0.content"])
def test_later_errors_name_the_prompt(param: str) -> None:
    with pytest.raises(TaskArgsInvalid) as caught, completion().own_terms():
        raise TaskArgsInvalid(f"{param}: too long; shorten the messages", param)
    assert caught.value.param == "prompt"
    assert caught.value.message == "prompt: too long; shorten the prompt"
