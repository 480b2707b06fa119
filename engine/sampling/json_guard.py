"""Forbids what a grammar cannot: a key twice in an object, and numbers that are no 64-bit floats.

A grammar of JSON with undeclared keys does not remember them, and llguidance's numbers without
bounds may be endless. A `JsonGuard` follows an answer beside llguidance's matcher and takes tokens
out of its masks. It only compares bytes: in grammars that have a guard each character of a string
has one spelling (`engine.sampling.grammar`). Closed schemas with bounds on all numbers need none.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

MAX_EXPONENT_DIGITS = 2
MAX_INTEGER_DIGITS = 200
"""A number of at most so many digits before the point is below 10**299, with any exponent of two
digits; the largest 64-bit float is above 10**308."""

Ids = npt.NDArray[np.int64]
Frames = tuple[frozenset[bytes] | None, "Frames"] | None
"""The open objects, by their keys so far, and arrays (None), the innermost first."""

_QUOTE, _BACKSLASH = b'"\\'
_OPEN_OBJECT, _COMMA, _POINT = b"{,."
_OPENING, _CLOSING = frozenset(b"{["), frozenset(b"}]")
_DIGITS, _SIGNS, _EXPONENTS = frozenset(b"0123456789"), frozenset(b"+-"), frozenset(b"eE")
_INTEGER, _FRACTION, _EXPONENT = 1, 2, 3
_MOST_DIGITS = {_INTEGER: MAX_INTEGER_DIGITS, _EXPONENT: MAX_EXPONENT_DIGITS}
_MANY_DIGITS = MAX_INTEGER_DIGITS // 2
_LONG_NUMBER = re.compile(rb"[eE][+-]?[0-9]{%d}|[0-9]{32}" % (MAX_EXPONENT_DIGITS + 1))


class TokenBytes:
    """The bytes of a model's tokens, and those tokens that a guard has to look at."""

    def __init__(self, tokens: Sequence[bytes]) -> None:
        """``tokens`` are the bytes of each id."""
        self.tokens = tokens
        in_order = sorted((text, index) for index, text in enumerate(tokens) if text)
        self._texts = [text for text, _ in in_order]
        self._ids: Ids = np.array([index for _, index in in_order], dtype=np.int64)
        # Of a token that ends one key and has another, or that begins within a string.
        self.three_quotes = self.having(lambda text: text.count(b'"') >= 3)
        self.quoting_twice = self.having(_quotes_twice)
        self._quoting: dict[bytes, list[int]] = {}
        for index, text in enumerate(tokens):
            for quoted in text.split(b'"')[1:-1]:
                self._quoting.setdefault(quoted, []).append(index)
        self.long_numbers = self.having(lambda text: _LONG_NUMBER.search(text) is not None)
        self.digits = self.having(lambda text: text[0] in _DIGITS)
        # Of tokens that are, or begin with, so many digits of an exponent.
        self.exponents = [
            self.having(re.compile(rb"[+-]?[0-9]{%d}" % count).match)
            for count in range(1, MAX_EXPONENT_DIGITS + 2)
        ]

    def having(self, wanted: Callable[[bytes], object]) -> Ids:
        """The ids of the tokens that have a property."""
        found = [index for index, text in enumerate(self.tokens) if text and wanted(text)]
        return np.array(found, dtype=np.int64)

    def quoting(self, frames: Frames) -> Ids:
        """The ids of the tokens that have a key of the open objects between two quotes."""
        found: list[int] = []
        while frames is not None:
            for key in frames[0] or ():
                found += self._quoting.get(key, ())
            frames = frames[1]
        return np.array(found, dtype=np.int64)

    def beginning(self, text: bytes) -> Ids:
        """The ids of the tokens that begin with some bytes, of which the last is not 255."""
        end = text[:-1] + bytes([text[-1] + 1])
        return self._ids[bisect_left(self._texts, text) : bisect_left(self._texts, end)]


@dataclass(frozen=True)
class Prelude:
    """Reasoning that may stand before the JSON.

    Attributes:
        begin: the text that begins it.
        end: the text that ends it.
        is_open: the prompt has begun it.
    """

    begin: bytes
    end: bytes
    is_open: bool


@dataclass(frozen=True)
class _Place:
    """A place in an answer.

    Attributes:
        frames: what is open here.
        in_key, in_string: whether this is inside the quotes of a key, or of another string.
        escaped: a backslash came before.
        key: the bytes of the key so far.
        key_next: the next string in this object is a key.
        phase: the part of a number that this is in; 0 outside of numbers.
        digits: of its integer part or exponent so far.
        begun: a reasoning that has begun is over only behind its end; its last bytes are `before`.
        before: bytes in front of the JSON that have not been understood yet; None inside it.
    """

    frames: Frames = None
    in_key: bool = False
    in_string: bool = False
    escaped: bool = False
    key: bytes = b""
    key_next: bool = False
    phase: int = 0
    digits: int = 0
    begun: bool = False
    before: bytes | None = None


class JsonGuard:
    """Follows one answer."""

    def __init__(
        self, tokens: TokenBytes, prelude: Prelude | None = None, *, is_marked_up: bool = False
    ) -> None:
        """Begin an answer.

        Args:
            tokens: of the model.
            prelude: reasoning that may come first.
            is_marked_up: text that is no JSON stands around the JSON, which is objects and arrays.
        """
        self._tokens = tokens
        self._prelude = prelude
        self._is_marked_up = is_marked_up
        self._spanning: Ids | None = None
        before = None if prelude is None else b""
        self._place = _Place(before=before, begun=prelude is not None and prelude.is_open)

    def fork(self) -> JsonGuard:
        """A copy at the same place."""
        copy = JsonGuard(self._tokens, self._prelude, is_marked_up=self._is_marked_up)
        copy._place, copy._spanning = self._place, self._spanning
        return copy

    def accept(self, token_id: int) -> None:
        """Advance by a token that was allowed."""
        place = self._after(self._place, self._tokens.tokens[token_id])
        assert place is not None
        self._place = place

    def restrict(self, row: npt.NDArray[np.uint32]) -> None:
        """Clear the bits of tokens that must not come next.

        Args:
            row: [num_words], a bit for each token, lowest first.
        """
        place = self._place
        if place.in_key and place.frames is not None and place.frames[0]:
            for key in place.frames[0]:
                if key.startswith(place.key):
                    _clear(row, self._tokens.beginning(key[len(place.key) :] + b'"'))
        if place.phase == _EXPONENT:
            _clear(row, self._tokens.exponents[MAX_EXPONENT_DIGITS - place.digits])
        for ids in self._suspects(place):
            for token_id in ids[_are_set(row, ids)].tolist():
                if self._after(place, self._tokens.tokens[token_id]) is None:
                    _clear(row, np.array([token_id]))

    def _suspects(self, place: _Place) -> tuple[Ids, ...]:
        """The tokens that may do something wrong from here on, but for those that end this key."""
        tokens = self._tokens
        if place.before is not None and place.begun:
            assert self._prelude is not None
            if self._spanning is None:
                end = self._prelude.end[-1:]
                self._spanning = tokens.having(lambda text: _may_be_wrong(text.partition(end)[2]))
            return (self._spanning,)
        suspects = (tokens.quoting(place.frames), tokens.quoting_twice, tokens.long_numbers)
        if place.in_key:
            return (*suspects, tokens.three_quotes)
        if place.phase == _INTEGER and place.digits > _MANY_DIGITS:
            return (*suspects, tokens.digits)
        return suspects

    def _after(self, place: _Place, text: bytes) -> _Place | None:
        """The place behind some bytes; None if something in them is wrong."""
        if place.before is None:
            return self._in_json(place, text)
        assert self._prelude is not None
        begin, end = self._prelude.begin, self._prelude.end
        text = place.before + text
        begun = place.begun
        if not begun:
            if len(text) < len(begin) and begin.startswith(text):
                return _Place(before=text)
            begun = text.startswith(begin)
            if not begun:  # there is none
                return self._in_json(_Place(), text)
            text = text[len(begin) :]
        _, found, rest = text.partition(end)
        if found:
            return self._in_json(_Place(), rest)
        return _Place(before=text[-len(end) :], begun=True)

    def _in_json(self, place: _Place, text: bytes) -> _Place | None:
        frames, key_next, key = place.frames, place.key_next, place.key
        in_key, in_string, escaped = place.in_key, place.in_string, place.escaped
        phase, digits = place.phase, place.digits
        for position, byte in enumerate(text):
            if in_key or in_string:
                if escaped:
                    escaped = False
                elif byte == _BACKSLASH:
                    escaped = True
                elif byte == _QUOTE:
                    if in_key:
                        assert frames is not None
                        assert frames[0] is not None
                        if key in frames[0]:
                            return None
                        frames = (frames[0] | {key}, frames[1])
                        key, key_next = b"", False
                    in_key = in_string = False
                    continue
                if in_key:
                    key += text[position : position + 1]
                continue
            if byte in _DIGITS:
                if phase in _MOST_DIGITS:
                    digits += 1
                    if digits > _MOST_DIGITS[phase]:
                        return None
                elif not phase and (frames is not None or not self._is_marked_up):
                    phase, digits = _INTEGER, 1
                continue
            if phase:
                if byte in _EXPONENTS:
                    phase, digits = _EXPONENT, 0
                    continue
                if byte == _POINT:
                    phase = _FRACTION
                    continue
                if byte in _SIGNS:
                    continue
                phase = 0
            if byte == _QUOTE:
                in_key, in_string = key_next, not key_next
            elif byte in _OPENING:
                key_next = byte == _OPEN_OBJECT
                frames = (frozenset() if key_next else None, frames)
            elif byte in _CLOSING:
                frames, key_next = frames[1] if frames else None, False
            elif byte == _COMMA:
                key_next = frames is not None and frames[0] is not None
        return _Place(frames, in_key, in_string, escaped, key, key_next, phase, digits)


def _quotes_twice(text: bytes) -> bool:
    """Whether a token by itself may have a key twice, or a key with a quote in it."""
    quoted = text.split(b'"')[1:-1]
    return len(set(quoted)) < len(quoted) or (bool(quoted) and b"\\" in text)


def _may_be_wrong(text: bytes) -> bool:
    return text.count(b'"') >= 2 or _LONG_NUMBER.search(text) is not None


def _are_set(row: npt.NDArray[np.uint32], ids: Ids) -> npt.NDArray[np.bool_]:
    bits: npt.NDArray[np.uint32] = row[ids >> 5] >> (ids & 31).astype(np.uint32)
    found: npt.NDArray[np.bool_] = (bits & 1) != 0
    return found


def _clear(row: npt.NDArray[np.uint32], ids: Ids) -> None:
    np.bitwise_and.at(row, ids >> 5, ~(np.uint32(1) << (ids & 31).astype(np.uint32)))
