"""Log probabilities as OpenAI's clients read them, made from those of a task's choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schema.answers.response import (
    PromptTokenLogprob,
    StreamChunk,
    TaskResponse,
    TokenLogprob,
    TopLogprob,
)
from schema.clients.openai import CompletionRequest
from schema.errors import TaskArgsInvalid


def scored_prompt(
    listed: Sequence[PromptTokenLogprob], num_top: int
) -> list[dict[str, Any] | None]:
    """``prompt_logprobs`` as vLLM has them: for each token of the prompt what could stand there.

    That is an object from token ids to log probabilities: of the token itself, which comes first,
    and of the ``num_top`` most probable ones. Nothing predicts the first token of a prompt: null.
    """
    return [None if token["logprob"] is None else _by_id(token, num_top) for token in listed]


def _by_id(token: PromptTokenLogprob, num_top: int) -> dict[str, Any]:
    top = token["top_logprobs"][:num_top]
    ranks = {other["token_id"]: rank for rank, other in enumerate(top, 1)}
    return {
        str(other["token_id"]): {
            "logprob": other["logprob"],
            "rank": ranks.get(other["token_id"]),
            "decoded_token": other["token"],
        }
        for other in (token, *top)
    }


def chat_logprobs(listed: Sequence[TokenLogprob]) -> dict[str, Any]:
    """``logprobs`` of chat completions: the engine's entries are in OpenAI's form already."""
    return {"content": list(listed), "refusal": None}


MAX_ECHOED = 2**20
"""Log probabilities of prompts that one answer may have, counted for each choice that has them:
more than a hundred megabytes of JSON."""
MAX_PROMPT_IDS = 2**23
"""The same for token ids of prompts: tens of megabytes."""


class PromptsTold:
    """Counts what one answer to a request for completions tells of its prompts' tokens."""

    def __init__(self, asked: CompletionRequest) -> None:
        self._asked = asked
        self._num_logprobs = 0
        self._num_ids = 0

    def add(self, answer: TaskResponse | StreamChunk, num_choices: int) -> None:
        """Count the tokens of a prompt, which are told with some choices.

        Raises:
            TaskArgsInvalid: these are too many for one answer.
        """
        tokens = answer.get("prompt_logprobs") or answer.get("prompt_token_ids", ())
        asked, num_told = self._asked, len(tokens) * num_choices
        if asked.echo and asked.logprobs is not None:
            self._num_logprobs += num_told * (1 + asked.logprobs)
            self._check("logprobs", "with echo ")
        if asked.prompt_logprobs is not None:
            self._num_logprobs += num_told * (1 + asked.prompt_logprobs)
            self._check("prompt_logprobs")
        if asked.return_token_ids:
            self._num_ids += num_told
            if self._num_ids > MAX_PROMPT_IDS:
                raise TaskArgsInvalid(
                    "return_token_ids: the tokens of the prompts, times the choices, may be at "
                    f"most {MAX_PROMPT_IDS} in one answer: send fewer prompts in a request, or "
                    "ask for fewer choices",
                    param="return_token_ids",
                )

    def _check(self, field: str, when: str = "") -> None:
        if self._num_logprobs > MAX_ECHOED:
            raise TaskArgsInvalid(
                f"{field}: {when}the tokens of the prompts, times the choices, times (1 + "
                f"{field}) may be at most {MAX_ECHOED} in one answer: send fewer prompts in a "
                f"request, or ask for fewer {field} or choices",
                param=field,
            )


class CompletionLogprobs:
    """``logprobs`` of the completions of one choice: lists side by side.

    ``text_offset`` says where in the choice's text a token begins. A token without text has no
    length there, and a token that begins within a character begins after that character.
    """

    def __init__(self) -> None:
        self._offset = 0

    def of_prompt(
        self, text: str, listed: Sequence[PromptTokenLogprob], num_top: int
    ) -> dict[str, Any]:
        """The lists for the prompt, with whose ``text`` the choice begins; before all others.

        Nothing predicts the first token: its log probabilities are null. There are at least
        ``num_top`` alternatives listed.
        """
        self._offset = len(text)
        known = [_scored(token, num_top) for token in listed]
        return {
            "tokens": [_name(token) for token in listed],
            "token_logprobs": [token["logprob"] for token in listed],
            "top_logprobs": [token and _by_name(token) for token in known],
            "text_offset": [token["text_offset"] for token in listed],
        }

    def push(self, listed: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The lists for the next tokens of the choice."""
        offsets = []
        for token in listed:
            offsets.append(self._offset)
            # Counts the bytes that begin a character.
            self._offset += sum(byte & 0xC0 != 0x80 for byte in token["bytes"] or ())
        return {
            "tokens": [_name(token) for token in listed],
            "token_logprobs": [token["logprob"] for token in listed],
            "top_logprobs": [_by_name(token) for token in listed],
            "text_offset": offsets,
        }


def _scored(token: PromptTokenLogprob, num_top: int) -> TokenLogprob | None:
    """A token of the prompt as one of an answer; None for the first one."""
    logprob = token["logprob"]
    if logprob is None:
        return None
    return {
        "token": token["token"],
        "token_id": token["token_id"],
        "bytes": token["bytes"],
        "logprob": logprob,
        "top_logprobs": token["top_logprobs"][:num_top],
    }


def _by_name(token: TokenLogprob) -> dict[str, float]:
    """The most probable tokens and the chosen one; of equal names the most probable is kept."""
    names: dict[str, float] = {}
    for other in token["top_logprobs"]:
        names.setdefault(_name(other), other["logprob"])
    names.setdefault(_name(token), token["logprob"])
    return names


def _name(token: TokenLogprob | TopLogprob | PromptTokenLogprob) -> str:
    """The text of a token; if it is not text, its bytes as OpenAI writes them."""
    data = bytes(token["bytes"] or ())
    try:
        data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
    return token["token"]
