"""Log probabilities as OpenAI's clients read them, made from those of a task's choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schema.answers.response import PromptTokenLogprob, TokenLogprob, TopLogprob
from schema.clients.openai import OpenAIRequest
from schema.errors import TaskArgsInvalid


def chat_logprobs(listed: Sequence[TokenLogprob]) -> dict[str, Any]:
    """``logprobs`` of chat completions: the engine's entries are in OpenAI's form already."""
    return {"content": list(listed), "refusal": None}


MAX_ECHOED = 2**20
"""Log probabilities of prompts that one answer may have, counted for each choice that begins with
them: more than a hundred megabytes of JSON."""


class EchoedLogprobs:
    """Counts the log probabilities of prompts in one answer."""

    def __init__(self, asked: OpenAIRequest) -> None:
        self._asked = asked
        self._count = 0

    def add(self, num_tokens: int, num_choices: int) -> None:
        """Count those of the tokens of a prompt, with which some choices begin.

        Raises:
            TaskArgsInvalid: these are too many for one answer.
        """
        if self._asked.num_logprobs is None:
            return
        self._count += num_tokens * num_choices * (1 + self._asked.num_logprobs)
        if self._count > MAX_ECHOED:
            raise TaskArgsInvalid(
                "logprobs: with echo the tokens of the prompts, times the choices, times (1 + "
                f"logprobs) may be at most {MAX_ECHOED} in one answer: send fewer prompts in a "
                "request, or ask for fewer logprobs or choices",
                param="logprobs",
            )


class CompletionLogprobs:
    """``logprobs`` of the completions of one choice: lists side by side.

    ``text_offset`` says where in the choice's text a token begins. A token without text has no
    length there, and a token that begins within a character begins after that character.
    """

    def __init__(self) -> None:
        self._offset = 0

    def of_prompt(self, text: str, listed: Sequence[PromptTokenLogprob]) -> dict[str, Any]:
        """The lists for the prompt, with whose ``text`` the choice begins; before all others.

        Nothing predicts the first token: its log probabilities are null.
        """
        self._offset = len(text)
        known = [_scored(token) for token in listed]
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


def _scored(token: PromptTokenLogprob) -> TokenLogprob | None:
    """A token of the prompt as one of an answer; None for the first one."""
    logprob = token["logprob"]
    if logprob is None:
        return None
    return {
        "token": token["token"],
        "token_id": token["token_id"],
        "bytes": token["bytes"],
        "logprob": logprob,
        "top_logprobs": token["top_logprobs"],
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
