"""Has a server verify an answer: it reads the tokens and says whether it draws the same ones."""

from __future__ import annotations

import json
from typing import Any

from gpt_task.receipts.claim import CHAT_ROUTE, TASK_ROUTE, Claim, Uncheckable
from gpt_task.receipts.sources import ask, at
from schema.clients.openai import ChatCompletionRequest
from schema.errors import TaskError
from schema.json_values import parse_json

VERIFICATIONS_ROUTE = "/v1/verifications"
_COMPARED = ("model", "usage", "system_fingerprint", "receipt")


def verify(claim: Claim, server: str, tolerance: float = 0.0, key: str | None = None) -> Any:
    """The server's verdict.

    Args:
        claim: the request and the response; this has to have its token ids.
        server: its address.
        tolerance: by how much a token may have lost against the one that the server draws.
        key: an API key of the server.

    Raises:
        Uncheckable: the server does not answer, or refuses the claim.
    """
    body = {**_in_terms_of_tasks(claim), "tolerance": tolerance}
    return parse_json(ask(at(server, VERIFICATIONS_ROUTE), body, key))


def _in_terms_of_tasks(claim: Claim) -> dict[str, Any]:
    """The task and the response that a claim of another API means."""
    route = _route(claim)
    if route == TASK_ROUTE:
        return {"task": claim.request, "response": claim.response}
    if route != CHAT_ROUTE:
        raise Uncheckable(f"an answer of {route} cannot be verified; send the task that it means")
    response = claim.response
    try:
        asked = ChatCompletionRequest.parse(json.dumps(claim.request))
        task = asked.task(response["seed"] if asked.seed is None else asked.seed)
    except (TaskError, KeyError) as error:
        raise Uncheckable(f"request: is not a chat completion: {error}") from None
    wanted = ("index", "message", "finish_reason", "token_ids")
    choices = [{name: one[name] for name in wanted if name in one} for one in claim.choices()]
    return {
        "task": task.model_dump(mode="json", exclude_unset=True),
        "response": {
            **{name: response[name] for name in _COMPARED if name in response},
            "choices": choices,
        },
    }


def _route(claim: Claim) -> str:
    if claim.is_task:
        return TASK_ROUTE
    receipt = claim.response.get("receipt")
    if isinstance(receipt, dict) and isinstance(receipt.get("route"), str):
        return str(receipt["route"])
    return CHAT_ROUTE if claim.response.get("object") == "chat.completion" else TASK_ROUTE
