"""`gpt_task.inference.verify_task`: of its own answers, and of those of a server."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from gpt_task.cache import MemoryModelCache
from gpt_task.inference import get_execution_dtype, run_task, verify_task
from gpt_task.inference.errors import TaskArgsInvalid
from gpt_task.models import GPTTaskArgs

FIELDS: dict[str, Any] = {
    "messages": [{"role": "user", "content": "one task"}],
    "dtype": "float32",
    "seed": 4,
    "generation_config": {"do_sample": True, "max_new_tokens": 24, "num_return_sequences": 2},
}


@pytest.fixture(scope="module")
def cache() -> MemoryModelCache:
    return MemoryModelCache(max_size=1)


def test_its_own_answer(text_model: str, cache: MemoryModelCache) -> None:
    args = GPTTaskArgs.model_validate({**FIELDS, "model": text_model, "return_token_ids": True})
    response = run_task(args, model_cache=cache)
    assert response is not None
    right = verify_task(response, args, model_cache=cache)
    assert (right["verdict"], right["same_fingerprint"]) == ("exact", None)
    assert get_execution_dtype() == "float32"
    by_fields = verify_task(response, model=text_model, model_cache=cache, **FIELDS)
    assert by_fields == right
    claim: Any = copy.deepcopy(response)
    ids = claim["choices"][1]["token_ids"]
    ids[5] ^= 1
    wrong = verify_task(claim, args, model_cache=cache)
    assert wrong["verdict"] == "different"
    assert wrong["first_difference"] is not None
    assert (wrong["first_difference"]["choice"], wrong["first_difference"]["position"]) == (1, 5)
    claim = copy.deepcopy(response)
    claim["choices"][0]["message"]["content"] += "x"
    assert verify_task(claim, args, model_cache=cache)["verdict"] == "different"


def test_white_space_at_the_ends_is_not_compared(text_model: str, cache: MemoryModelCache) -> None:
    args = GPTTaskArgs.model_validate({**FIELDS, "model": text_model, "return_token_ids": True})
    response: Any = run_task(args, model_cache=cache)
    for choice in response["choices"]:
        choice["message"]["content"] = f" {choice['message']['content']}\n"
    assert verify_task(response, args, model_cache=cache)["verdict"] == "exact"


def test_what_it_refuses(text_model: str, cache: MemoryModelCache) -> None:
    response = run_task(model=text_model, model_cache=cache, **FIELDS)
    assert response is not None
    with pytest.raises(TaskArgsInvalid, match="return_token_ids"):
        verify_task(response, model=text_model, model_cache=cache, **FIELDS)
