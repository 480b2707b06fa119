"""Compares the fields of two responses, as JSON values."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schema.answers.verification import MAX_REPORTED_CHARS, ResponseDifference
from schema.json_values import clipped

Path = tuple[str | int, ...]
"""Where a value stands in a response, such as ``("choices", 0, "message", "content")``."""

_BEFORE = 20
"""How many characters are shown before the first one that differs."""


@dataclass(frozen=True)
class Difference:
    """A field that differs, and whether it does by no more than the tolerance."""

    path: Path
    claimed: Any
    expected: Any
    within: bool

    def told(self) -> ResponseDifference:
        """As a verdict has it."""
        claimed, expected = self.claimed, self.expected
        if isinstance(claimed, str) and isinstance(expected, str):
            claimed, expected = _around_difference(claimed, expected)
        return {
            "field": ".".join(map(str, self.path)),
            "claimed": _told(claimed),
            "expected": _told(expected),
        }


class Comparison:
    """Compares JSON values; numbers that are not counts may differ by the tolerance."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance

    def values(self, path: Path, claimed: Any, expected: Any) -> Iterator[Difference]:
        """The differences of two values at a place."""
        if claimed == expected:
            return
        if isinstance(claimed, Mapping) and isinstance(expected, Mapping):
            for name in sorted({*claimed, *expected}):
                inner = (*path, name)
                if name == "top_logprobs" and self._tolerance:
                    yield from self._tops(inner, claimed.get(name), expected.get(name))
                else:
                    yield from self.values(inner, claimed.get(name), expected.get(name))
            return
        if isinstance(claimed, list) and isinstance(expected, list):
            for place in range(max(len(claimed), len(expected))):
                of_claimed = claimed[place] if place < len(claimed) else None
                of_expected = expected[place] if place < len(expected) else None
                yield from self.values((*path, place), of_claimed, of_expected)
            return
        yield Difference(path, claimed, expected, self._near(claimed, expected))

    def _tops(self, path: Path, claimed: Any, expected: Any) -> Iterator[Difference]:
        """Of the most probable tokens: by token, because near ones may have changed places.

        A token that is in one list only must be near the end of the other.
        """
        if claimed is None or expected is None or len(claimed) != len(expected):
            yield from self.values(path, claimed, expected)
            return
        ours = {one["token_id"]: one for one in expected}
        theirs = {one["token_id"]: one for one in claimed}
        if len(theirs) < len(claimed):
            yield Difference(path, claimed, expected, within=False)
            return
        lowest = min((one["logprob"] for one in expected), default=0.0)
        for place, one in enumerate(claimed):
            inner = (*path, place)
            if (same := ours.get(one["token_id"])) is not None:
                yield from self.values(inner, one, same)
            else:
                near = self._near(one["logprob"], lowest)
                yield Difference((*inner, "token_id"), one["token_id"], None, near)
        missing = [one for token, one in ours.items() if token not in theirs]
        end = min((one["logprob"] for one in claimed), default=0.0)
        for one in missing:
            near = self._near(one["logprob"], end)
            yield Difference(path, None, one["token_id"], near)

    def _near(self, claimed: Any, expected: Any) -> bool:
        """Whether two numbers differ by no more than the tolerance; counts are integers."""
        floats = isinstance(claimed, float) and isinstance(expected, float)
        return floats and abs(claimed - expected) <= self._tolerance


def _around_difference(claimed: str, expected: str) -> tuple[str, str]:
    """Two texts from shortly before the first character that differs."""
    place = next(
        (i for i, (a, b) in enumerate(zip(claimed, expected, strict=False)) if a != b),
        min(len(claimed), len(expected)),
    )
    start = max(0, place - _BEFORE)
    cut = "…" if start else ""
    return cut + claimed[start:], cut + expected[start:]


def _told(value: Any) -> str | int | float | None:
    if value is None or isinstance(value, int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return clipped(text, MAX_REPORTED_CHARS)
