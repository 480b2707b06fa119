"""`verify_task`: whether a response is the answer to a task. gpt-task has no such function."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.platform.platforms import best_platform
from gpt_task.cache import ModelCache
from gpt_task.config import Config, get_config
from gpt_task.inference import execution
from gpt_task.inference.errors import translated_errors
from gpt_task.inference.inference import on_engine
from gpt_task.inference.translation import to_response
from gpt_task.models import GPTTaskArgs, GPTTaskResponse
from schema.answers.response import TaskResponse
from schema.answers.verification import ClaimedResponse, Verdict, claim_of


def verify_task(
    response: GPTTaskResponse | TaskResponse | Mapping[str, Any],
    args: GPTTaskArgs | None = None,
    *,
    tolerance: float = 0.0,
    config: Config | None = None,
    model_cache: ModelCache[Any] | None = None,
    **fields: Any,
) -> Verdict:
    """Verify a response in process: its tokens are read and compared, not generated again.

    Args:
        response: what `run_task` or a server has answered to the task with
            ``return_token_ids=True``. White space at the ends of its texts is not compared.
        args: the task; or its fields as keyword arguments.
        tolerance: by how much a token may have lost, see `schema.answers.verification`.
        config: where models come from; `get_config()` without it.
        model_cache: keeps the loaded model for the next task; without it the model is dropped.
        fields: the fields of `GPTTaskArgs`, without ``args``.

    Raises:
        One of `gpt_task.inference.errors`.
    """
    if config is None:
        config = get_config()
    execution.begin(gpu_count=0 if best_platform().num_devices() is None else 1)
    with translated_errors():
        if args is None:
            args = GPTTaskArgs.model_validate(fields)
        elif fields:
            raise TypeError("verify_task takes either args or the fields of a task")
        model = args.model

        def in_its_form(expected: TaskResponse) -> TaskResponse:
            fingerprint = expected["system_fingerprint"]
            mine = to_response(model, expected)
            return {
                "model": mine["model"],
                "choices": mine["choices"],
                "usage": mine["usage"],
                "system_fingerprint": fingerprint,
            }

        claimed = _stripped(claim_of(response, tolerance).response)
        with on_engine(args, config, model_cache) as (engine, task):
            return engine.verify_blocking(task, claimed, tolerance, render=in_its_form)


def _stripped(response: ClaimedResponse) -> ClaimedResponse:
    """The response with its texts as `run_task` returns them."""
    choices = []
    for choice in response.choices:
        content = choice.message.content.strip()
        message = choice.message.model_copy(update={"content": content})
        choices.append(choice.model_copy(update={"message": message}))
    return response.model_copy(update={"choices": choices})
