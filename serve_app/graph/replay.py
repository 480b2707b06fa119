"""Going on with a stream whose replica was lost.

The answer is a function of the task alone. So the task is run again, the part that the client has
already is compared and dropped, and the rest follows: nothing is lost, doubled or changed. If the
second run differs, the stream ends with an error; answers are never spliced.

The replica that takes over reads the tokens that the lost one has generated (`KnownTokens`), as far
as it would have generated the same ones. What it says is compared all the same.
"""

from __future__ import annotations

from array import array
from typing import Any, cast

from schema.answers.response import StreamChoice, StreamChunk
from schema.errors import ReplayDiffers
from serve_app.protocol.messages import TokenIds

Path = tuple[str | int, ...]
"""Where a text stands in a chunk: the choice's index, then keys, and the index of list items that
have one, such as ``(0, "delta", "content")``."""

_CONSTANT = ("index", "role")
"""Said with every chunk, and no part of what adds up."""

_OF_PROMPT = ("prompt_text", "prompt_token_ids", "prompt_logprobs")
"""Said once, in the first chunk of a run."""

_TEXT_CHOICE, _TEXT_DELTA = 3, 2
"""How many keys a choice and its delta have that carry nothing but text; a choice of a task that
asks for them has its ``token_ids`` beside these."""


class Delivered:
    """What was sent to a client in the chunks of one task.

    The parts of a chunk add up over the stream: texts are continued, lists get longer. So two
    runs are compared text by text, however each was cut into chunks.
    """

    def __init__(self) -> None:
        self._sent: dict[Path, list[Any]] = {}  # as pieces: joined when they are compared
        self._lengths: dict[Path, int] = {}  # of what was sent
        self._seen: dict[Path, int] = {}  # how much of it this run has said
        self._finished: set[int] = set()
        self._fingerprint: str | None = None
        self._first_run = True
        self._prompt: dict[str, Any] = {}
        self._prompt_sent = False

    def again(self) -> None:
        """The task begins anew."""
        self._first_run = False
        self._seen.clear()

    def take(self, chunk: StreamChunk) -> StreamChunk | None:
        """What is new in a chunk of the current run; None if nothing is.

        Raises:
            ReplayDiffers: it is not how the task went before.
        """
        fingerprint = chunk.get("system_fingerprint")
        if not self._sent:
            self._fingerprint = fingerprint
        elif fingerprint != self._fingerprint:
            raise ReplayDiffers(
                "the replica that ran the task was lost, and the one that took over is of another "
                f"kind ({fingerprint} instead of {self._fingerprint}): send the task again"
            )
        self._note_prompt(chunk)
        if self._first_run:
            for choice in chunk["choices"]:
                self._note(choice)
            self._prompt_sent = bool(self._prompt)
            return chunk
        choices = [new for choice in chunk["choices"] if (new := self._new_choice(choice))]
        if not choices:
            return None
        news = {name: value for name, value in chunk.items() if name not in _OF_PROMPT}
        if not self._prompt_sent:
            news |= self._prompt
            self._prompt_sent = True
        return cast(StreamChunk, {**news, "choices": choices})

    def _note_prompt(self, chunk: StreamChunk) -> None:
        """Keep what a run says of the prompt, which is the same in all runs."""
        said = {name: value for name, value in chunk.items() if name in _OF_PROMPT}
        if said and self._prompt and said != self._prompt:
            raise _differs()
        self._prompt = said or self._prompt

    def _note(self, choice: StreamChoice) -> None:
        """Keep what a choice says in the first run, in which all of it is new."""
        index, delta, reason = choice["index"], choice["delta"], choice["finish_reason"]
        token_ids = choice.get("token_ids")
        is_text = len(choice) == _TEXT_CHOICE + (token_ids is not None)
        if reason is None and is_text and len(delta) == _TEXT_DELTA:
            # Nothing but text, as nearly always: the walk below takes ten times as long.
            self._rest((index, "delta", "content"), delta["content"])
            if token_ids:
                self._rest((index, "token_ids"), token_ids)
            return
        self._new((index,), choice)
        if reason is not None:
            self._finished.add(index)

    def _new_choice(self, choice: Any) -> dict[str, Any] | None:
        index, reason = choice["index"], choice["finish_reason"]
        known = index in self._finished
        news = self._new((index,), {k: v for k, v in choice.items() if k not in _CONSTANT})
        if reason is not None:
            self._check_complete(index)
            self._finished.add(index)
        elif not news:
            return None
        if known:
            if news:
                raise _differs()
            return None
        # An answer without tokens has log probabilities and ids too: none.
        for name in ("logprobs", "token_ids"):
            if name in choice:
                news.setdefault(name, [])
        # Every delta has these two.
        delta = {"role": choice["delta"]["role"], "content": "", **news.pop("delta", {})}
        return {"index": index, **news, "delta": delta, "finish_reason": reason}

    def _new(self, path: Path, value: Any) -> Any:
        """The part of a value that has not been sent; empty if there is none."""
        if isinstance(value, dict):
            parts = {k: self._new((*path, k), v) for k, v in value.items() if k not in _CONSTANT}
            news = {k: part for k, part in parts.items() if part}
            return {"index": value["index"], **news} if news and "index" in value else news
        if isinstance(value, list) and all(isinstance(v, dict) and "index" in v for v in value):
            items = [self._new((*path, item["index"]), item) for item in value]
            return [item for item in items if item]
        if isinstance(value, str | list):
            return self._rest(path, value)
        if value is None:
            return None
        raise TypeError(f"{path} is of a kind that does not add up: {type(value).__name__}")

    def _rest(self, path: Path, value: Any) -> Any:
        start, sent = self._seen.get(path, 0), self._lengths.get(path, 0)
        self._seen[path] = start + len(value)
        if start < sent:
            known = self._joined(path)[start : start + len(value)]
            if value[: len(known)] != known:
                raise _differs()
            value = value[len(known) :]
        if value:
            self._sent.setdefault(path, []).append(value)
            self._lengths[path] = sent + len(value)
        return value

    def _joined(self, path: Path) -> Any:
        pieces = self._sent[path]
        if len(pieces) > 1:
            texts = isinstance(pieces[0], str)
            pieces[:] = ["".join(pieces) if texts else [item for piece in pieces for item in piece]]
        return pieces[0]

    def _check_complete(self, index: int) -> None:
        """A choice that ends must have said all that was said of it before."""
        for path, length in self._lengths.items():
            if path[0] == index and self._seen.get(path, 0) < length:
                raise _differs()


class KnownTokens:
    """The tokens that a task's replicas have generated so far, for the next one to read.

    They are only expected: where a run says others, its own count from there on. What an earlier
    run has said beyond it stays, in case this one is lost too. An engine generates no more than the
    task's ``max_new_tokens`` for each answer, which bounds them: four bytes a token.
    """

    def __init__(self) -> None:
        self._answers: list[array[int]] = []
        self._said: list[int] = []  # how many tokens of each this run has said

    def again(self) -> None:
        """The task begins anew."""
        self._said = [0] * len(self._answers)

    def take(self, token_ids: TokenIds) -> None:
        """Keep what a message of the current run says."""
        for index, new in enumerate(token_ids):
            if index == len(self._answers):
                self._answers.append(array("I"))
                self._said.append(0)
            answer, start = self._answers[index], self._said[index]
            self._said[index] = start + len(new)
            before = answer[start : start + len(new)]
            if before and before.tolist() != list(new[: len(before)]):
                del answer[start:]
            answer.extend(new[len(answer) - start :])

    def token_ids(self) -> TokenIds:
        """As a replica takes them."""
        return tuple(tuple(answer) for answer in self._answers)

    def __len__(self) -> int:
        """How many tokens of all answers are known."""
        return sum(map(len, self._answers))


def _differs() -> ReplayDiffers:
    return ReplayDiffers(
        "the replica that ran the task was lost, and run again the task began differently; this "
        "is a fault of the server"
    )
