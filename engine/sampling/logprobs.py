"""Log probabilities of tokens, for the tasks that ask for them; they cost other tasks nothing.

They are those of the model's own logits, before any processor. Each row is computed by itself, so
that its bits do not depend on the batch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad
from transformers import PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode

from engine.text.detokenizer import Detokenizer
from schema.answers.response import PromptTokenLogprob, TokenLogprob, TopLogprob

NEVER = -9999.0
"""Reported for a probability of 0, because JSON has no minus infinity; OpenAI's value."""

_ALIGNMENT = 64  # elements
_INVALID = "\ufffd"  # what a decoder writes for bytes that are not valid UTF-8
_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's name of a byte
_BYTE_OF_LETTER = {letter: byte for byte, letter in bytes_to_unicode().items()}  # GPT-2's


def aligned(scores: torch.Tensor) -> torch.Tensor:
    """Scores [rows, vocab] with impossible columns behind, so that all rows begin alike in memory.

    Kernels on GPUs sum a row that begins at another alignment in another order, and where a row
    begins depends on the rows before it, if the vocabulary is no multiple of a few tokens.
    """
    padding = -scores.shape[1] % _ALIGNMENT
    return pad(scores, (0, padding), value=-torch.inf)


class Logprobs:
    """The log probabilities of the next tokens of some sequences. Waits for nothing.

    Attributes:
        rows: float32 [sequences, vocab or more]; columns beyond the vocabulary are impossible.
    """

    def __init__(self, logits: torch.Tensor, num_top: int) -> None:
        """Copy what is needed of float32 logits [sequences, vocab], which may be overwritten later.

        Args:
            logits: the model's own.
            num_top: how many of the most probable tokens to report.
        """
        self.rows = torch.log_softmax(aligned(logits), dim=-1)
        self._num_top = min(num_top, logits.shape[1])

    def of(self, tokens: torch.Tensor) -> torch.Tensor:
        """The report on the sampled tokens [sequences]: float64 [sequences, 1 + 2 * top].

        Their own log probabilities, the ids of the most probable tokens, and theirs. Of tokens that
        are equally probable the smaller id comes first.
        """
        own = self.rows.gather(1, tokens.clamp(min=0)[:, None]).double()
        if not self._num_top:
            return own
        best = _keys(self.rows).topk(self._num_top).indices
        return torch.cat([own, best.double(), self.rows.gather(1, best).double()], dim=1)


def _keys(rows: torch.Tensor) -> torch.Tensor:
    """Integers that sort as the numbers in a row do, and by token id where these are equal.

    `topk` does not define which of equal numbers it takes, and in which order.
    """
    bits = (rows + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    # The bits of floats sort as the floats do, except that negative ones sort backwards.
    order = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    num_ids = rows.shape[1]
    return order * num_ids - torch.arange(num_ids, device=rows.device)


class LastLogits:
    """A forward hook that keeps the model's own logits of the last step of `generate`."""

    def __init__(self) -> None:
        self._logits: torch.Tensor | None = None

    def __call__(self, module: Any, args: Any, output: Any) -> None:
        """Called after every forward; processors make those after a step's first one."""
        if self._logits is None:
            self._logits = output.logits[:, -1].to(torch.float32, copy=True)

    def take(self) -> torch.Tensor:
        """float32 [rows, vocab]: once a step."""
        logits, self._logits = self._logits, None
        assert logits is not None
        return logits


class TokenText(NamedTuple):
    """A token as text, and its bytes in an answer, if it has any that are known."""

    text: str
    bytes: list[int] | None


class TokenTexts:
    """What tokens look like by themselves. Belongs to the engine's thread.

    A token's text is the one that it has after another token, so that texts can be joined: alone, a
    SentencePiece token would lose the space before it. The text of a special token is its name.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._decode = Detokenizer(tokenizer, ()).decode
        self._special = frozenset(tokenizer.all_special_ids)
        self._pieces: dict[int, TokenText] = {}

    def entry(self, token_id: int, report: Sequence[float]) -> TokenLogprob:
        """A token of an answer, with its row of what `Logprobs.of` reports."""
        num_top = len(report) // 2
        top = zip(report[1 : 1 + num_top], report[1 + num_top :], strict=True)
        return {
            **self._token(token_id, report[0]),
            "top_logprobs": [self._token(int(other), logprob) for other, logprob in top],
        }

    def first_entry(self, token_id: int) -> PromptTokenLogprob:
        """The first token of a prompt, which nothing predicts."""
        piece = self._known(token_id)
        return {
            "token": piece.text,
            "token_id": token_id,
            "bytes": piece.bytes,
            "text_offset": 0,
            "logprob": None,
            "top_logprobs": [],
        }

    def _token(self, token_id: int, logprob: float) -> TopLogprob:
        piece = self._known(token_id)
        return {
            "token": piece.text,
            "token_id": token_id,
            "bytes": piece.bytes,
            "logprob": max(logprob, NEVER),
        }

    def _known(self, token_id: int) -> TokenText:
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._pieces[token_id] = self._piece(token_id)
        return piece

    def _piece(self, token_id: int) -> TokenText:
        name = self._tokenizer.convert_ids_to_tokens(token_id)
        alone = self._decode([token_id])
        if _INVALID in alone:
            return TokenText(alone, _bytes(str(name)))
        twice = self._decode([token_id, token_id])
        text = twice[len(alone) :] if twice.startswith(alone) else alone
        if text:
            return TokenText(text, list(text.encode()))
        return TokenText(str(name) if token_id in self._special else "", None)


def _bytes(name: str) -> list[int] | None:
    """The bytes that a tokenizer calls ``name``, where they are not text."""
    if byte := _BYTE_PIECE.fullmatch(name):
        return [int(byte[1], 16)]
    if all(letter in _BYTE_OF_LETTER for letter in name):
        return [_BYTE_OF_LETTER[letter] for letter in name]
    return list(name.encode()) if _INVALID in name else None
