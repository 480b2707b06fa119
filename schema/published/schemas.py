"""The JSON Schemas of the contract, made from the definitions that the code itself uses."""

import functools
from typing import Any

from pydantic import TypeAdapter

from schema.answers.response import StreamChunk, TaskResponse
from schema.answers.verification import Verdict, VerificationRequest
from schema.clients.anthropic import MessagesRequest
from schema.clients.openai import ChatCompletionRequest, CompletionRequest
from schema.clients.responses import ResponsesRequest
from schema.errors import Cancelled, ErrorResponse, TaskArgsInvalid
from schema.task import Task

DIALECT = "https://json-schema.org/draft/2020-12/schema"

_USAGE = {"prompt_tokens": 12, "completion_tokens": 7, "total_tokens": 19}
_ANSWER = "A red circle."
_FINGERPRINT = "fp_12559359b47a"

# Name: the definition, its title, its examples.
_PUBLISHED: dict[str, tuple[Any, str, list[Any]]] = {
    # Requests have their examples beside their definitions.
    "task": (Task, "Task", []),
    "chat_completion_request": (ChatCompletionRequest, "Chat completion request", []),
    "completion_request": (CompletionRequest, "Completion request", []),
    "responses_request": (ResponsesRequest, "Responses request", []),
    "messages_request": (MessagesRequest, "Messages request", []),
    "verification_request": (VerificationRequest, "Verification request", []),
    "response": (
        TaskResponse,
        "Task response",
        [
            {
                "model": "demo",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": _ANSWER},
                        "finish_reason": "stop",
                    }
                ],
                "usage": _USAGE,
                "system_fingerprint": _FINGERPRINT,
            }
        ],
    ),
    "stream_chunk": (
        StreamChunk,
        "Stream chunk",
        [
            {
                "model": "demo",
                "choices": [
                    {
                        "index": 0,
                        "delta": {"role": "assistant", "content": content},
                        "finish_reason": finish_reason,
                    }
                ],
                "usage": {
                    "prompt_tokens": 12,
                    "completion_tokens": generated,
                    "total_tokens": 12 + generated,
                },
                "system_fingerprint": _FINGERPRINT,
            }
            for content, finish_reason, generated in [("A red", None, 2), (" circle.", "stop", 7)]
        ],
    ),
    "verdict": (
        Verdict,
        "Verdict",
        [
            {
                "model": "demo",
                "verdict": verdict,
                "first_difference": difference,
                "response_differences": [],
                "tokens_checked": checked,
                "prompt_tokens": 12,
                "system_fingerprint": _FINGERPRINT,
                "same_fingerprint": True,
            }
            for verdict, difference, checked in [
                ("exact", None, 7),
                (
                    "different",
                    {"choice": 0, "position": 3, "claimed": 5, "expected": 9, "margin": 0.25},
                    4,
                ),
            ]
        ],
    ),
    "error": (
        ErrorResponse,
        "Error response",
        [
            TaskArgsInvalid(
                "generation_config.top_p: must be at most 1, not 1.5.", "generation_config.top_p"
            ).to_dict(),
            Cancelled("The client closed the connection.").to_dict(),
        ],
    ),
}


@functools.cache
def schemas() -> dict[str, dict[str, Any]]:
    """The published JSON Schemas (draft 2020-12) by name: task, response and so on.

    Made once and shared: do not change them.
    """
    return {name: _schema(name) for name in _PUBLISHED}


def file_name(name: str) -> str:
    """The name of the schema's file, also its `$id`: the contract belongs to no host."""
    return f"{name}.schema.json"


def _schema(name: str) -> dict[str, Any]:
    definition, title, examples = _PUBLISHED[name]
    # In validation mode: all that a reader must accept, not only what this server writes.
    made = TypeAdapter(definition).json_schema(mode="validation")
    made |= {"title": title}
    if examples:
        made |= {"examples": examples}
    return {"$schema": DIALECT, "$id": file_name(name)} | made
