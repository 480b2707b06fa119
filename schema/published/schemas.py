"""The JSON Schemas of the contract, made from the definitions that the code itself uses."""

import functools
from typing import Any

from pydantic import TypeAdapter

from schema.answers.receipt import Receipt
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
# Signed with the key of RFC 8037, appendix A.1.
_RECEIPT = {
    "version": 1,
    "route": "/v1/tasks",
    "request_digest": "16d1237c8399cf8f9f9a8ef575d719838ecdca68653f9315a3dfad9c3d302418",
    "model": "demo",
    "system_fingerprint": _FINGERPRINT,
    "dtype": "bfloat16",
    "quantize_bits": None,
    "layout": None,
    "seed": 0,
    "choices": [
        {
            "index": 0,
            "message_digest": "7eeffd8d4200b9e3a518c7aff6153f29f7aae227f5ecededa6511af3db54e89b",
            "token_ids_digest": "d9de7a933a65c5734e5720de5035f1ec83d6144b1df1870916285cc427b6820f",
            "finish_reason": "stop",
            "trace": "c9613997237f65491e06a014bcfff2df59b60534cf4c5d1eaf001e4764d4f15b",
        }
    ],
    "usage": _USAGE,
    "key_id": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
    "signature": "fBEaygMmoW_C9v4wL9U881JoxMHKlKwfAmbqQxFvBrBfKk3EbSOU0DiPGThi7gn_"
    "jtqEP1yzvfFLmNAkcpYLCg",
}

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
    "receipt": (Receipt, "Receipt", [_RECEIPT]),
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
