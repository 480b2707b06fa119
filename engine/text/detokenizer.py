"""Token ids to text, incrementally: the one text path of streamed and whole answers."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

from transformers import PreTrainedTokenizerBase

from engine.text.stop_strings import StopWatch, TextWatch

_INCOMPLETE = "�"  # what a decoder writes for bytes that are not (yet) valid UTF-8
_CHARACTER_TOKENS = 4  # tokens that one character may be spread over, one a byte
_LONG_RUN = 16  # tokens


class Detokenizer:
    """Turns one sequence's tokens into text deltas, which a `StopWatch` sees too.

    A token's text depends on the tokens before it (byte pieces, leading spaces), so a delta is the
    difference of two decodings that begin at the same earlier token. Text is held back while it
    ends in an incomplete UTF-8 sequence; `flush` gives out what is left at the end.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stop: Sequence[str] | StopWatch,
        hidden: frozenset[int] | None = None,
    ) -> None:
        """Begin a sequence.

        Args:
            tokenizer: of the model.
            stop: the stop strings to look for in the text, or what watches the text for them.
            hidden: tokens that are not part of the text; None for all special tokens.
        """
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._watch = TextWatch(stop) if isinstance(stop, Sequence) else stop
        self._ids: list[int] = []
        self._context_start = 0  # first token of both decodings
        self._emitted = 0  # tokens whose text has been given out

    @property
    def stopped(self) -> bool:
        """Whether the text has come to a stop string."""
        return self._watch.found

    def push(self, *token_ids: int) -> str:
        """Add a token, or several at once; returns the new text, which may be empty."""
        self._ids.extend(token_ids)
        text = self._pending_text()
        if text.endswith(_INCOMPLETE):
            # A stop string before the incomplete character ends the answer all the same.
            self._watch.peek(text)
            return self._settled()
        if not text:
            return ""
        return self._emit(text, len(self._ids))

    def _settled(self) -> str:
        """The part of a long run of invalid bytes that no further byte can complete; mostly empty.

        Without this, every token of such a run would decode all of it again.
        """
        stop = len(self._ids) - _CHARACTER_TOKENS
        if stop - self._emitted < _LONG_RUN:
            return ""
        emitted, head, everything = (
            self.decode(self._ids[self._context_start : end])
            for end in (self._emitted, stop, len(self._ids))
        )
        if not everything.startswith(head):  # it ends within a character
            return ""
        return self._emit(head[len(emitted) :], stop)

    def fork(self) -> Detokenizer:
        """A copy that has seen the same tokens."""
        twin = copy(self)
        twin._watch = self._watch.fork()
        twin._ids = self._ids[self._context_start :]
        twin._context_start, twin._emitted = 0, self._emitted - self._context_start
        return twin

    def stops_in(self, token_ids: Sequence[int]) -> bool:
        """Whether a sequence that goes on with these tokens comes to a stop string."""
        twin = self.fork()
        twin.push(*token_ids)
        return twin.stopped

    def flush(self) -> str:
        """The text still held back: call once, after the last token."""
        return self._emit(self._pending_text(), len(self._ids))

    def _pending_text(self) -> str:
        emitted = self.decode(self._ids[self._context_start : self._emitted])
        everything = self.decode(self._ids[self._context_start :])
        return everything[len(emitted) :]

    def _emit(self, text: str, stop: int) -> str:
        self._context_start, self._emitted = self._emitted, stop
        self._watch.push(text)
        return text

    def decode(self, ids: list[int]) -> str:
        """The text of tokens, as answers have it: without hidden tokens and without clean-up.

        Clean-up would change text that has been given out ("hello ." -> "hello.").
        """
        if self._hidden is not None:
            ids = [id for id in ids if id not in self._hidden]
        text = self._tokenizer.decode(
            ids,
            skip_special_tokens=self._hidden is None,
            clean_up_tokenization_spaces=False,
        )
        assert isinstance(text, str)
        return text
