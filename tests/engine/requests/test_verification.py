"""The verdict on a claimed response, without a model: what is a difference, and what it is called.

The claims are made from a response by changing it in one place, and the change must be found there.
"""

from __future__ import annotations

import copy
import json
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from engine.requests.verification.claimed_tokens import Loss, first_loss
from engine.requests.verification.verdict import verdict
from schema import TaskResponse
from schema.answers.verification import MAX_RESPONSE_DIFFERENCES, Verdict, claim_of

_VERDICT: TypeAdapter[Verdict] = TypeAdapter(Verdict)


def _top(token: int, logprob: float) -> dict[str, Any]:
    return {"token": f"<{token}>", "token_id": token, "bytes": [token], "logprob": logprob}


def _logprob(token: int) -> dict[str, Any]:
    tops = [_top(1, -0.5), _top(2, -1.0), _top(3, -1.5)]
    return {**_top(token, -token / 8), "bytes": None, "top_logprobs": tops}


CALL = {"id": "call_0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
RESPONSE: Any = {
    "model": "m",
    "prompt_text": "Hi",
    "prompt_logprobs": [
        {**_top(4, -1.0), "logprob": None, "text_offset": 0, "top_logprobs": []},
        {**_top(5, -1.0), "text_offset": 2, "top_logprobs": [_top(5, -1.0)]},
    ],
    "choices": [
        {
            "index": 0,
            "message": {
                "role": "assistant",
                "content": "One two three. " * 20,
                "reasoning_content": "Let me see.",
                "tool_calls": [CALL],
            },
            "logprobs": [_logprob(token) for token in (3, 4, 5)],
            "token_ids": [3, 4, 5, 0],
            "stop_string": "END",
            "finish_reason": "tool_calls",
        },
        {
            "index": 1,
            "message": {"role": "assistant", "content": "é"},
            "logprobs": [_logprob(7)],
            "token_ids": [7],
            "finish_reason": "length",
        },
    ],
    "usage": {"prompt_tokens": 2, "completion_tokens": 5, "total_tokens": 7},
    "system_fingerprint": "fp",
}


def judged(claimed: Any, tolerance: float = 0.0, losses: Any = None) -> Verdict:
    """The verdict on a claim, after a trip through JSON, as a client reads it."""
    expected: TaskResponse = copy.deepcopy(RESPONSE)
    claim = claim_of(json.loads(json.dumps(claimed)), tolerance)
    found = verdict(claim, expected, losses)
    assert expected == RESPONSE
    return _VERDICT.validate_python(json.loads(json.dumps(found)))


def changed(value: Any, *path: Any) -> dict[str, Any]:
    """The response with another value in one place; without a value there if it is `...`."""
    claim: dict[str, Any] = copy.deepcopy(cast(dict[str, Any], RESPONSE))
    *way, last = path
    place: Any = claim
    for key in way:
        place = place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return claim


def test_the_answer_itself_is_exact() -> None:
    for tolerance in (0.0, 0.5):
        found = judged(RESPONSE, tolerance)
        assert found == {
            "model": "m",
            "verdict": "exact",
            "first_difference": None,
            "response_differences": [],
            "tokens_checked": 5,
            "prompt_tokens": 2,
            "system_fingerprint": "fp",
            "same_fingerprint": True,
        }


FIELDS = [
    ("model", ("model",), "n", "m"),
    ("prompt_text", ("prompt_text",), "Ho", "Hi"),
    ("prompt_logprobs.1.logprob", ("prompt_logprobs", 1, "logprob"), -1.25, -1.0),
    ("prompt_logprobs.0.logprob", ("prompt_logprobs", 0, "logprob"), -1.25, None),
    ("usage.prompt_tokens", ("usage", "prompt_tokens"), 3, 2),
    ("usage.completion_tokens", ("usage", "completion_tokens"), 4, 5),
    ("usage.total_tokens", ("usage", "total_tokens"), 8, 7),
    ("choices.0.finish_reason", ("choices", 0, "finish_reason"), "stop", "tool_calls"),
    ("choices.0.stop_string", ("choices", 0, "stop_string"), "EN", "END"),
    ("choices.0.stop_string", ("choices", 0, "stop_string"), None, "END"),
    ("choices.1.stop_string", ("choices", 1, "stop_string"), "END", None),
    ("choices.1.message.content", ("choices", 1, "message", "content"), "e", "é"),
    (
        "choices.0.message.reasoning_content",
        ("choices", 0, "message", "reasoning_content"),
        None,
        "Let me see.",
    ),
    (
        "choices.0.message.tool_calls.0.function.arguments",
        ("choices", 0, "message", "tool_calls", 0, "function", "arguments"),
        "{}",
        '{"a": 1}',
    ),
    ("choices.0.logprobs.1.logprob", ("choices", 0, "logprobs", 1, "logprob"), -0.75, -0.5),
    ("choices.0.logprobs.1.token_id", ("choices", 0, "logprobs", 1, "token_id"), 6, 4),
    ("choices.0.logprobs.1.bytes", ("choices", 0, "logprobs", 1, "bytes"), [1], None),
]


@pytest.mark.parametrize(("field", "path", "value", "expected"), FIELDS)
def test_a_field_that_differs_is_named(field: str, path: Any, value: Any, expected: Any) -> None:
    found = judged(changed(value, *path))
    assert found["verdict"] == "different"
    assert found["first_difference"] is None
    (difference,) = found["response_differences"]
    told = json.dumps(value) if isinstance(value, list) else value
    assert difference == {"field": field, "claimed": told, "expected": expected}


@pytest.mark.parametrize(
    "path",
    [
        ("choices", 0, "message", "reasoning_content"),
        ("choices", 0, "message", "tool_calls"),
        ("choices", 0, "stop_string"),
    ],
)
def test_a_field_that_is_missing_is_named(path: Any) -> None:
    found = judged(changed(..., *path))
    assert found["verdict"] == "different"
    (difference,) = found["response_differences"]
    assert difference["field"] == ".".join(map(str, path))
    assert difference["claimed"] is None


@pytest.mark.parametrize(
    "path",
    [
        ("prompt_text",),
        ("prompt_logprobs",),
        ("choices", 0, "logprobs"),
        ("choices", 1, "logprobs"),
    ],
)
def test_what_a_claim_may_leave_out(path: Any) -> None:
    assert judged(changed(..., *path))["verdict"] == "exact"
    assert judged(changed(None, *path))["verdict"] == "exact"


def test_log_probabilities_that_the_task_does_not_give_are_a_difference() -> None:
    expected = copy.deepcopy(RESPONSE)
    del expected["choices"][0]["logprobs"]
    found = verdict(claim_of(RESPONSE), expected)
    assert found["verdict"] == "different"
    assert found["response_differences"][0]["field"] == "choices.0.logprobs"


def test_the_fingerprint_is_told_and_not_judged() -> None:
    other = judged(changed("fp_other", "system_fingerprint"))
    assert (other["verdict"], other["same_fingerprint"]) == ("exact", False)
    none = judged(changed(..., "system_fingerprint"))
    assert (none["verdict"], none["same_fingerprint"]) == ("exact", None)


@settings(max_examples=200)
@given(
    st.lists(st.integers(0, 2), max_size=6),
    st.lists(st.integers(0, 2), max_size=6),
)
def test_the_first_token_that_differs(claimed: list[int], drawn: list[int]) -> None:
    found = first_loss(claimed, drawn)
    if claimed == drawn:
        assert found == []
        return
    (loss,) = found
    assert claimed[: loss.position] == drawn[: loss.position]
    assert loss.claimed == next(iter(claimed[loss.position : loss.position + 1]), None)
    assert loss.expected == next(iter(drawn[loss.position : loss.position + 1]), None)
    assert loss.claimed != loss.expected
    assert loss.margin is None


def test_tokens_that_differ() -> None:
    found = judged(changed([3, 4, 6, 0], "choices", 0, "token_ids"))
    assert found["verdict"] == "different"
    assert found["first_difference"] == {
        "choice": 0,
        "position": 2,
        "claimed": 6,
        "expected": 5,
        "margin": None,
    }
    assert found["tokens_checked"] == 3 + 1
    assert found["response_differences"] == []


def test_fields_that_follow_from_other_tokens_are_not_named() -> None:
    claim = changed([8], "choices", 1, "token_ids")
    claim["choices"][1]["message"]["content"] = "other"
    claim["choices"][0]["finish_reason"] = "length"
    claim["usage"]["completion_tokens"] = 9
    found = judged(claim)
    assert [one["field"] for one in found["response_differences"]] == ["choices.0.finish_reason"]


def test_too_few_and_too_many_choices() -> None:
    claim = changed(..., "choices", 1)
    first = judged(claim)["first_difference"]
    assert first == {"choice": 1, "position": 0, "claimed": None, "expected": 7, "margin": None}
    claim = copy.deepcopy(RESPONSE)
    claim["choices"].append({**claim["choices"][1], "index": 2})
    first = judged(claim)["first_difference"]
    assert first == {"choice": 2, "position": 0, "claimed": 7, "expected": None, "margin": None}
    claim["choices"][2]["token_ids"] = []
    found = judged(claim)
    assert (found["verdict"], found["first_difference"]) == ("different", None)
    assert [one["field"] for one in found["response_differences"]] == ["choices.2"]


# --- The tolerance -------------------------------------------------------------------------------


def test_losses_within_the_tolerance() -> None:
    losses: dict[int, list[Loss]] = {
        0: [Loss(1, 4, 9, 0.25), Loss(2, 5, 8, 0.5)],
        1: [Loss(0, 7, 2, 0.125)],
    }
    found = judged(RESPONSE, 0.5, losses)
    assert found["verdict"] == "within_tolerance"
    first: Any = {"choice": 0, "position": 1, "claimed": 4, "expected": 9, "margin": 0.25}
    assert found["first_difference"] == first
    assert found["tokens_checked"] == 5
    # The first that is not within it is named, and no other.
    narrower = judged(RESPONSE, 0.3, losses)
    assert narrower["verdict"] == "different"
    second: Any = {"choice": 0, "position": 2, "claimed": 5, "expected": 8, "margin": 0.5}
    assert narrower["first_difference"] == second
    assert narrower["tokens_checked"] == 3 + 1


def test_a_loss_that_could_not_be_drawn_is_within_no_tolerance() -> None:
    found = judged(RESPONSE, 1e9, {0: [Loss(1, 4, 9, None)], 1: []})
    assert found["verdict"] == "different"


def test_without_a_tolerance_a_loss_between_equal_scores_is_a_loss() -> None:
    found = judged(RESPONSE, 0.0, {0: [Loss(1, 4, 9, 0.0)], 1: []})
    assert found["verdict"] == "different"
    assert judged(RESPONSE, 1e-9, {0: [Loss(1, 4, 9, 0.0)], 1: []})["verdict"] == "within_tolerance"


def test_numbers_within_the_tolerance() -> None:
    claim = changed(-0.625, "choices", 0, "logprobs", 1, "logprob")  # -0.5
    assert judged(claim)["verdict"] == "different"
    assert judged(claim, 0.0625)["verdict"] == "different"
    found = judged(claim, 0.125)
    assert found["verdict"] == "within_tolerance"
    assert found["first_difference"] is None
    difference = {"field": "choices.0.logprobs.1.logprob", "claimed": -0.625, "expected": -0.5}
    assert found["response_differences"] == [difference]
    # What is within the tolerance is not named beside what is not.
    claim["model"] = "n"
    found = judged(claim, 0.125)
    assert found["verdict"] == "different"
    assert [one["field"] for one in found["response_differences"]] == ["model"]


def test_counts_have_no_tolerance() -> None:
    assert judged(changed(3, "usage", "prompt_tokens"), 10.0)["verdict"] == "different"
    path = ("prompt_logprobs", 1, "text_offset")
    assert judged(changed(3, *path), 10.0)["verdict"] == "different"


def test_near_tokens_may_have_changed_places() -> None:
    path = ("choices", 1, "logprobs", 0, "top_logprobs")
    swapped = changed([_top(2, -0.75), _top(1, -0.75), _top(3, -1.5)], *path)
    assert judged(swapped, 0.25)["verdict"] == "within_tolerance"
    assert judged(swapped, 0.2)["verdict"] == "different"
    assert judged(swapped)["verdict"] == "different"
    other_last = changed([_top(1, -0.5), _top(2, -1.0), _top(9, -1.75)], *path)
    assert judged(other_last, 0.25)["verdict"] == "within_tolerance"
    assert judged(other_last, 0.2)["verdict"] == "different"
    other_first = changed([_top(9, -0.5), _top(2, -1.0), _top(3, -1.5)], *path)
    assert judged(other_first, 0.25)["verdict"] == "different"
    twice = changed([_top(1, -0.5), _top(1, -0.5), _top(3, -1.5)], *path)
    assert judged(twice, 10.0)["verdict"] == "different"


# --- What is told --------------------------------------------------------------------------------


def test_long_texts_are_clipped_around_the_difference() -> None:
    text = RESPONSE["choices"][0]["message"]["content"]
    other = text[:150] + "X" + text[151:] * 2
    (found,) = judged(changed(other, "choices", 0, "message", "content"))["response_differences"]
    for told, whole in ((found["claimed"], other), (found["expected"], text)):
        assert isinstance(told, str)
        assert len(told) <= 200
        assert whole[140:160] in told
    assert found["claimed"] != found["expected"]


def test_many_differences_are_not_all_told() -> None:
    claim = copy.deepcopy(RESPONSE)
    claim["choices"][0]["logprobs"] *= 100
    found = judged(claim)
    assert len(found["response_differences"]) == MAX_RESPONSE_DIFFERENCES
    assert found["response_differences"][0]["field"] == "choices.0.logprobs.3"
