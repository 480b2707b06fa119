"""Translates tasks and answers between gpt-task's form and the contract's."""

from __future__ import annotations

from collections.abc import Callable

from engine import EngineConfig
from gpt_task.config import Config
from gpt_task.models import GPTTaskArgs, GPTTaskResponse, GPTTaskStreamResponse
from schema.answers.response import Choice, FinishReason, StreamChunk, TaskResponse, Usage
from schema.generation import MAX_BEAMS, MAX_NEW_TOKENS, MAX_RETURN_SEQUENCES
from schema.task import Task

# Settings in which gpt-task overrides the model's own; the contract lets the model's own decide.
_MAX_NEW_TOKENS = 256
_NUM_RETURN_SEQUENCES = 1

_MODEL = "gpt-task"


def to_task(args: GPTTaskArgs) -> Task:
    """The task of the contract. Raises `schema.TaskArgsInvalid`.

    The contract's tasks come from clients and never name a directory; gpt-task's may. So the task
    gets another name for its model, and the answer gets the original name back.
    """
    settings = {
        "max_new_tokens": _MAX_NEW_TOKENS,
        "num_return_sequences": _NUM_RETURN_SEQUENCES,
    } | (args.generation_config or {})
    fields = args.model_dump(exclude={"generation_config", "model"})
    return Task.from_fields(**fields, model=_MODEL, generation_config=settings)


def engine_config(args: GPTTaskArgs, config: Config) -> EngineConfig:
    """An engine for a task's model. It has one user, so the length of tasks is not limited."""
    return EngineConfig(
        model=args.model,
        dtype=args.dtype,
        quantize_bits=args.quantize_bits,
        cache_dir=config.data_dir.models.huggingface if config.data_dir else None,
        local_files_only=config.local_files_only,
        trust_remote_code=config.trust_remote_code,
        cut_to_context=True,
        max_sequences=MAX_RETURN_SEQUENCES,
        max_exclusive_tokens=MAX_BEAMS * MAX_NEW_TOKENS,
    )


def to_response(model: str, response: TaskResponse) -> GPTTaskResponse:
    """gpt-task's response: the same, its texts without white space at both ends.

    ``model`` is the name that the task gave. The fingerprint is left out, because it stands for the
    bytes of the unstripped text.
    """
    return {
        "model": model,
        "choices": [_choice(choice) for choice in response["choices"]],
        "usage": response["usage"],
    }


def _choice(choice: Choice) -> Choice:
    made: Choice = {
        "index": choice["index"],
        "message": {"role": "assistant", "content": choice["message"]["content"].strip()},
        "finish_reason": choice["finish_reason"],
    }
    if "token_ids" in choice:
        made["token_ids"] = choice["token_ids"]
    return made


class ChunkStream:
    """Calls a gpt-task callback with the first answer of a task, chunk by chunk.

    Each chunk has one choice. The last chunk has the finish reason and no text; the others have
    text and no finish reason. The texts, joined, are the first choice's text in `to_response`:
    white space is held back until text follows it.
    """

    def __init__(self, model: str, callback: Callable[[GPTTaskStreamResponse], None]) -> None:
        self._model = model
        self._callback = callback
        self._begun = False
        self._held = ""

    def take(self, chunk: StreamChunk) -> None:
        """A chunk of the engine's."""
        for choice in chunk["choices"]:
            if choice["index"] == 0:
                text = self._held + choice["delta"]["content"]
                if not self._begun:
                    text = text.lstrip()
                stripped = text.rstrip()
                self._held = text[len(stripped) :]
                if stripped:
                    self._begun = True
                    self._call(stripped, None, chunk["usage"])

    def end(self, response: TaskResponse) -> None:
        """The last chunk."""
        first = response["choices"][0]
        self._call("", first["finish_reason"], response["usage"])

    def _call(self, text: str, reason: FinishReason | None, usage: Usage) -> None:
        self._callback(
            {
                "model": self._model,
                "choices": [
                    {
                        "index": 0,
                        "delta": {"role": "assistant", "content": text},
                        "finish_reason": reason,
                    }
                ],
                "usage": usage,
            }
        )
