"""Answers as OpenAI's clients read them, made from the responses and chunks of tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from schema.answers.response import (
    Choice,
    Delta,
    FinishReason,
    StreamChoice,
    StreamChunk,
    TaskResponse,
    TokenLogprob,
)
from schema.clients.openai import ChatCompletionRequest, CompletionRequest, OpenAIRequest
from schema.errors import TaskError
from serve_app.http.clients.answering import receipt_of
from serve_app.http.clients.openai.logprobs import (
    CompletionLogprobs,
    PromptsTold,
    chat_logprobs,
    scored_prompt,
)
from serve_app.http.sse import DONE, event


class Answer(ABC):
    """Translates the answer to one request, whole or in chunks; used once.

    Beside OpenAI's fields every object has ``seed``: a request with it gets the same answer.
    """

    prefix: ClassVar[str]
    whole_kind: ClassVar[str]
    chunk_kind: ClassVar[str]
    closing = DONE

    def __init__(self, asked: OpenAIRequest, request_id: str, created: int, seed: int) -> None:
        self._asked = asked
        self._id = f"{self.prefix}-{request_id}"
        self._created = created
        self._seed = seed
        self._last: StreamChunk | None = None
        self._scored: set[int] = set()  # choices of a stream that have had log probabilities

    def whole(self, response: TaskResponse) -> dict[str, Any]:
        """The answer that is not streamed."""
        return self.whole_list([response])

    def whole_list(self, responses: Sequence[TaskResponse]) -> dict[str, Any]:
        """The answer that is not streamed, of the responses to the request's prompts, in order."""
        choices = []
        per_prompt = self._asked.n or 1
        for number, response in enumerate(responses):
            for choice in response["choices"]:
                index = number * per_prompt + choice["index"]
                begun = self._begun(index, response)
                listed = choice.get("logprobs")
                logprobs = None if listed is None else self._logprobs(index, listed)
                made = self._choice({**choice, "index": index}, logprobs, begun)
                choices.append(made | _token_ids(choice))
        usage = Counter[str]()
        for response in responses:
            usage.update(response["usage"])
        whole = self._object(self.whole_kind, responses[0], choices) | {"usage": dict(usage)}
        return whole | self._of_prompt(responses[0]) | receipt_of(responses[0])

    def chunk(self, chunk: StreamChunk) -> bytes:
        """The events of the next chunk of the stream; empty if it has nothing new."""
        choices = [] if self._last is not None else self._begin(self._asked.n or 1)
        choices += self._prompts(chunk)
        for choice in chunk["choices"]:
            choices += self._grown(choice)
        self._last = chunk
        # A choice has them where no token came too: who joins a stream finds what the whole has.
        ids: dict[str, Any] = {"token_ids": []} if self._asked.return_token_ids else {}
        chunks = [self._chunk(chunk, [ids | choice]) for choice in choices]
        if chunks:
            chunks[0] |= self._of_prompt(chunk)
            chunks[-1] |= receipt_of(chunk)
        return b"".join(map(event, chunks))

    def end(self) -> bytes:
        """The event with the usage, if the request asks for it."""
        if self._last is None or not self._asked.wants_usage:
            return b""
        return event(self._chunk(self._last, []) | {"usage": self._last["usage"]})

    def failed(self, error: TaskError) -> bytes:
        """The error's body, as an HTTP error has it."""
        return event(error.to_dict())

    def error(self, error: TaskError) -> TaskError:
        """An error of the task, which names the fields of this request."""
        if self._asked.num_prompts > 1:
            return error  # it names them already, and which prompt
        return self._asked.in_own_terms(error)

    def _grown(self, choice: StreamChoice) -> Iterator[dict[str, Any]]:
        """What a choice grew by and its end come one after the other, as OpenAI sends them."""
        index, delta, reason = choice["index"], choice["delta"], choice["finish_reason"]
        listed, ids = choice.get("logprobs"), _token_ids(choice)
        said = any(value for name, value in delta.items() if name != "role")
        logprobs = None
        if listed:
            self._scored.add(index)
            logprobs = self._logprobs(index, listed)
        if listed or said or any(ids.values()):
            yield self._delta(index, delta, None, logprobs) | ids
        if reason is not None:
            # As in a whole choice without any token.
            none = listed is not None and index not in self._scored
            empty: Delta = {"role": "assistant", "content": ""}
            yield self._delta(index, empty, reason, self._logprobs(index, ()) if none else None)

    def _chunk(self, chunk: StreamChunk, choices: list[dict[str, Any]]) -> dict[str, Any]:
        made = self._object(self.chunk_kind, chunk, choices)
        return made | {"usage": None} if self._asked.wants_usage else made

    def _object(
        self, kind: str, answer: TaskResponse | StreamChunk, choices: list[dict[str, Any]]
    ) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": answer["model"],
            "system_fingerprint": answer.get("system_fingerprint"),
            "seed": self._seed,
            "choices": choices,
        }

    def _begun(self, index: int, response: TaskResponse) -> dict[str, Any] | None:
        """How a whole choice begins before what was generated, if it does."""
        return None

    def _prompts(self, chunk: StreamChunk) -> list[dict[str, Any]]:
        """What a stream says of a prompt in its choices, before their text."""
        return []

    def _of_prompt(self, answer: TaskResponse | StreamChunk) -> dict[str, Any]:
        """What an answer, or the beginning of a stream, says of the prompt beside its choices."""
        return {}

    @abstractmethod
    def _choice(
        self, choice: Choice, logprobs: dict[str, Any] | None, begun: dict[str, Any] | None
    ) -> dict[str, Any]:
        """A whole choice; ``begun`` is of `_begun`."""

    @abstractmethod
    def _begin(self, count: int) -> list[dict[str, Any]]:
        """What a stream says of its choices before their text."""

    @abstractmethod
    def _delta(
        self,
        index: int,
        delta: Delta,
        reason: FinishReason | None,
        logprobs: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """What was added to a choice, or its end."""

    @abstractmethod
    def _logprobs(self, index: int, listed: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The next log probabilities of a choice. Of its text a stop string is cut, here not."""


_OF_PROMPT = ("prompt_text", "prompt_token_ids", "prompt_logprobs")


def _tells(answer: TaskResponse | StreamChunk) -> bool:
    """Whether a task's answer says anything of its prompt: in a stream, once."""
    return any(name in answer for name in _OF_PROMPT)


def _token_ids(choice: Choice | StreamChoice) -> dict[str, list[int]]:
    """The tokens of a choice or of a part of it, if its task asks for them."""
    return {"token_ids": choice["token_ids"]} if "token_ids" in choice else {}


def _told(answer: TaskResponse | StreamChunk, asked: OpenAIRequest) -> dict[str, Any]:
    """What it says of the prompt's tokens, if the request asks for it; vLLM's names and form."""
    told: dict[str, Any] = {}
    if asked.return_token_ids and "prompt_token_ids" in answer:
        told["prompt_token_ids"] = answer["prompt_token_ids"]
    if asked.prompt_logprobs is not None and "prompt_logprobs" in answer:
        told["prompt_logprobs"] = scored_prompt(answer["prompt_logprobs"], asked.prompt_logprobs)
    return told


class ChatAnswer(Answer):
    """``chat.completion`` and ``chat.completion.chunk``."""

    prefix = "chatcmpl"
    whole_kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"

    def _choice(
        self, choice: Choice, logprobs: dict[str, Any] | None, begun: dict[str, Any] | None
    ) -> dict[str, Any]:
        message: dict[str, Any] = {**choice["message"], "refusal": None}
        return {
            "index": choice["index"],
            "message": message | {"content": message["content"] or self._no_content},
            "logprobs": logprobs,
            "finish_reason": choice["finish_reason"],
        }

    def _of_prompt(self, answer: TaskResponse | StreamChunk) -> dict[str, Any]:
        return _told(answer, self._asked)

    def _begin(self, count: int) -> list[dict[str, Any]]:
        delta = {"role": "assistant", "content": self._no_content}
        return [
            {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
            for index in range(count)
        ]

    def _delta(
        self,
        index: int,
        delta: Delta,
        reason: FinishReason | None,
        logprobs: dict[str, Any] | None,
    ) -> dict[str, Any]:
        sent = {name: value for name, value in delta.items() if value and name != "role"}
        if reason is None and not sent:  # only log probabilities, of text that is held back
            sent = {"content": self._no_content}
        return {"index": index, "delta": sent, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, index: int, listed: Sequence[TokenLogprob]) -> dict[str, Any]:
        return chat_logprobs(listed)

    @property
    def _no_content(self) -> str | None:
        """As with OpenAI, null where calls may stand in the text's place."""
        assert isinstance(self._asked, ChatCompletionRequest)
        return None if self._asked.tools else ""


class CompletionAnswer(Answer):
    """``text_completion``, which is what the chunks are called too."""

    prefix = "cmpl"
    whole_kind = chunk_kind = "text_completion"

    def __init__(self, asked: OpenAIRequest, request_id: str, created: int, seed: int) -> None:
        super().__init__(asked, request_id, created, seed)
        assert isinstance(asked, CompletionRequest)
        self._told = PromptsTold(asked)
        self._forms = [CompletionLogprobs() for _ in range(asked.num_prompts * (asked.n or 1))]

    def _begun(self, index: int, response: TaskResponse) -> dict[str, Any] | None:
        return self._prompt(index, response) if _tells(response) else None

    def _prompts(self, chunk: StreamChunk) -> list[dict[str, Any]]:
        """The prompt, as the beginning of each of its choices."""
        if not _tells(chunk):
            return []
        per_prompt = self._asked.n or 1
        first = chunk["choices"][0]["index"] // per_prompt * per_prompt
        return [self._prompt(index, chunk) for index in range(first, first + per_prompt)]

    def _prompt(self, index: int, answer: TaskResponse | StreamChunk) -> dict[str, Any]:
        self._told.add(answer, num_choices=1)
        text, listed = answer.get("prompt_text"), answer.get("prompt_logprobs")
        num_top, logprobs = self._asked.num_logprobs, None
        if text is not None and listed is not None and num_top is not None:
            logprobs = self._forms[index].of_prompt(text, listed, num_top)
        return self._text(index, text or "", None, logprobs) | _told(answer, self._asked)

    def _choice(
        self, choice: Choice, logprobs: dict[str, Any] | None, begun: dict[str, Any] | None
    ) -> dict[str, Any]:
        index, text, reason = choice["index"], choice["message"]["content"], choice["finish_reason"]
        if begun is not None:
            text = begun["text"] + text
            if logprobs is not None and begun["logprobs"] is not None:
                logprobs = {name: begun["logprobs"][name] + logprobs[name] for name in logprobs}
        return {**(begun or {}), **self._text(index, text, reason, logprobs)}

    def _begin(self, count: int) -> list[dict[str, Any]]:
        return []

    def _delta(
        self,
        index: int,
        delta: Delta,
        reason: FinishReason | None,
        logprobs: dict[str, Any] | None,
    ) -> dict[str, Any]:
        return self._text(index, delta["content"], reason, logprobs)

    def _logprobs(self, index: int, listed: Sequence[TokenLogprob]) -> dict[str, Any]:
        return self._forms[index].push(listed)

    @staticmethod
    def _text(
        index: int, text: str, reason: FinishReason | None, logprobs: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
