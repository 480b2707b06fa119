"""Requests to verify a response: what is taken and refused, and that the JSON Schema says so."""

import copy
import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

from schema import TaskArgsInvalid, schemas
from schema.answers.verification import VerificationRequest, claim_of
from tests.schema.edges import near, respelled
from tests.schema.test_agreement import beyond_schema, same_each_time

SCHEMA = Draft202012Validator(schemas()["verification_request"])

TOP: dict[str, Any] = {"token": "é", "token_id": 7, "bytes": [195, 169], "logprob": -0.5}
CHOICE: dict[str, Any] = {
    "index": 0,
    "message": {"role": "assistant", "content": "hi"},
    "finish_reason": "stop",
    "token_ids": [5, 9],
}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
RESPONSE: dict[str, Any] = {
    "model": "m",
    "choices": [CHOICE],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}
GOOD: dict[str, Any] = {"task": TASK, "response": RESPONSE}
ALL_FIELDS: dict[str, Any] = {
    "task": TASK | {"return_token_ids": True, "seed": 4},
    "response": RESPONSE
    | {
        "choices": [
            CHOICE
            | {
                "message": {
                    "role": "assistant",
                    "content": "",
                    "reasoning_content": "so",
                    "tool_calls": [CALL],
                },
                "stop_string": "END",
                "logprobs": [TOP | {"top_logprobs": [TOP, TOP | {"bytes": None}]}],
            },
            CHOICE | {"index": 1, "token_ids": []},
        ],
        "system_fingerprint": "fp",
        "prompt_text": "Hi",
        "prompt_logprobs": [
            TOP | {"text_offset": 0, "logprob": None, "top_logprobs": []},
            TOP | {"text_offset": 2, "top_logprobs": [TOP]},
        ],
        "receipt": {
            "version": 1,
            "dtype": "float32",
            "quantize_bits": None,
            "layout": None,
            "choices": [
                {"index": 0, "token_ids_digest": "0", "trace": None, "message_digest": "1"},
                {"index": 1, "token_ids_digest": "0", "trace": "2"},
            ],
            "signature": "x",
        },
    },
    "tolerance": 0.5,
}


def response_with(**fields: Any) -> dict[str, Any]:
    return GOOD | {"response": RESPONSE | fields}


def choice_with(**fields: Any) -> dict[str, Any]:
    return response_with(choices=[CHOICE | fields])


def refused(body: Any) -> TaskArgsInvalid:
    with pytest.raises(TaskArgsInvalid) as raised:
        VerificationRequest.parse(json.dumps(body))
    return raised.value


@pytest.mark.parametrize("body", [GOOD, ALL_FIELDS])
def test_good_requests(body: dict[str, Any]) -> None:
    SCHEMA.validate(body)
    request = VerificationRequest.parse(json.dumps(body))
    assert request.task.seed == body["task"].get("seed", 0)
    assert request.tolerance == body.get("tolerance", 0.0)
    for floats in (True, False):
        other = respelled(body, floats=floats)
        SCHEMA.validate(other)
        assert VerificationRequest.parse(json.dumps(other)) == request
    assert pickle.loads(pickle.dumps(request.claim)) == request.claim
    assert claim_of(body["response"], request.tolerance) == request.claim


def test_a_response_without_token_ids_says_how_to_get_them() -> None:
    for ids in ({}, {"token_ids": None}):
        choice = {name: value for name, value in CHOICE.items() if name != "token_ids"} | ids
        error = refused(response_with(choices=[CHOICE, choice | {"index": 1}]))
        assert error.param == "response.choices.1.token_ids"
        assert "return_token_ids" in error.message
        assert error.http_status == 400


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], None),
        ({}, "task"),
        ({"task": TASK}, "response"),
        (GOOD | {"responses": RESPONSE}, "responses"),
        (GOOD | {"task": TASK | {"sed": 1}}, "task.sed"),
        (GOOD | {"task": TASK | {"generation_config": {"n": 2}}}, "task.generation_config.n"),
        (GOOD | {"tolerance": -0.5}, "tolerance"),
        (GOOD | {"tolerance": "0"}, "tolerance"),
        (GOOD | {"tolerance": None}, "tolerance"),
        (response_with(choices=[]), "response.choices"),
        (response_with(choices=[CHOICE] * 65), "response.choices"),
        (response_with(choices=[CHOICE, CHOICE]), "response.choices.1.index"),
        (response_with(usage=None), "response.usage"),
        (choice_with(token_ids=[-1]), "response.choices.0.token_ids.0"),
        (choice_with(token_ids=[1, 2**31]), "response.choices.0.token_ids.1"),
        (choice_with(token_ids=[True]), "response.choices.0.token_ids.0"),
        (choice_with(token_ids="12"), "response.choices.0.token_ids"),
        (choice_with(finish_reason="eos"), "response.choices.0.finish_reason"),
        (choice_with(message={"role": "user", "content": ""}), "response.choices.0.message.role"),
        (choice_with(logprobs=[TOP]), "response.choices.0.logprobs.0.top_logprobs"),
    ],
)  # fmt: skip
def test_malformed_requests(body: Any, param: str | None) -> None:
    assert refused(body).param == param


def test_an_error_of_the_task_names_the_field_of_the_request() -> None:
    error = VerificationRequest.in_own_terms(TaskArgsInvalid("no", "generation_config.top_k", 2.0))
    assert (error.param, error.retry_after_s) == ("task.generation_config.top_k", 2.0)
    whole = TaskArgsInvalid("no")
    assert VerificationRequest.in_own_terms(whole) is whole


def test_a_list_of_a_million_wrong_things_is_refused_at_the_first() -> None:
    for body in (
        choice_with(token_ids=["x"] * 1_000_000),
        choice_with(logprobs=[0] * 1_000_000),
        response_with(prompt_logprobs=[0] * 200_000),
    ):
        text = json.dumps(body)
        with pytest.raises(TaskArgsInvalid) as raised:
            VerificationRequest.parse(text)
        assert "problems" not in raised.value.message  # to list a million takes minutes


def agree(body: Any) -> None:
    """Model and schema take the same bodies, but for what only the model can say."""
    valid = SCHEMA.is_valid(body)
    problem = None
    try:
        VerificationRequest.parse(json.dumps(body))
    except TaskArgsInvalid as error:
        problem = error.message
        json.dumps(error.to_dict(), ensure_ascii=False).encode()
    if problem is None:
        assert valid, [fault.message[:200] for fault in SCHEMA.iter_errors(body)]
    elif valid:
        assert beyond_schema(problem) or "in the order of their index" in problem, problem


@same_each_time
@given(near([GOOD, ALL_FIELDS], schemas()["verification_request"]))
def test_requests_near_a_limit(body: Any) -> None:
    agree(body)


def test_other_fields_of_a_response_are_not_looked_at() -> None:
    body = copy.deepcopy(GOOD)
    for place in (body["response"], body["response"]["choices"][0], body["response"]["usage"]):
        place["new"] = {"any": ["thing"]}
    SCHEMA.validate(body)
    assert VerificationRequest.parse(json.dumps(body)).claim.response == claim_of(RESPONSE).response
