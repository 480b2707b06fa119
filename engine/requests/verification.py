"""The verdict on a claimed response: its tokens and fields, compared with those of this engine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from schema.answers.response import Choice, TaskResponse
from schema.answers.verification import (
    MAX_REPORTED_CHARS,
    MAX_RESPONSE_DIFFERENCES,
    Claim,
    ResponseDifference,
    TokenDifference,
    Verdict,
)
from schema.json_values import clipped

Path = tuple[str | int, ...]
"""Where a value stands in a response, such as ``("choices", 0, "message", "content")``."""

_BEFORE = 20
"""How many characters are shown before the first one that differs."""
_MADE_OF_ANSWERS = ("receipt", "record")
"""What is said of an answer beside it; it is no part of a claim."""
_WHERE_GIVEN = ("prompt_text", "prompt_token_ids", "prompt_logprobs")
"""Fields of a response that a claim may leave out. So may a choice its `logprobs`."""


class Loss(NamedTuple):
    """A claimed token that was not drawn.

    Attributes:
        position: its place in the answer.
        claimed: None if the claim has ended before.
        expected: what was drawn instead; None if the answer has ended before.
        margin: by how much it lost; None if it could not be drawn, or if that is not known.
    """

    position: int
    claimed: int | None
    expected: int | None
    margin: float | None = None


def first_loss(claimed: Sequence[int], drawn: Sequence[int]) -> list[Loss]:
    """The first token in which a claim is not what was drawn without regard to it; none if equal.

    What follows it cannot be compared: it was drawn after another token.
    """
    common = min(len(claimed), len(drawn))
    for position in range(common):
        if claimed[position] != drawn[position]:
            return [Loss(position, claimed[position], drawn[position])]
    if len(claimed) > common:
        return [Loss(common, claimed[common], None)]
    if len(drawn) > common:
        return [Loss(common, None, drawn[common])]
    return []


class ClaimCheck:
    """The tokens that are claimed of one answer, beside those that are drawn.

    Belongs to the engine's thread until the answer has ended.

    Attributes:
        tolerance: by how much a claimed token may have lost; then the answer goes on with it.
        losses: the claimed tokens that were not drawn, in order.
        decided: whether one was not within the tolerance, so that the answer need not go on.
    """

    def __init__(self, claimed: Sequence[int], tolerance: float) -> None:
        self._claimed = claimed
        self.tolerance = tolerance
        self.losses: list[Loss] = []
        self.decided = False

    def token(self, position: int) -> int | None:
        """The claimed token in a place; None after the last one."""
        return self._claimed[position] if position < len(self._claimed) else None

    def judge(self, position: int, drawn: int, margin: float) -> None:
        """Take what was drawn in a place, and by how much a claimed token lost to it.

        A margin that is not finite means that it could not be drawn.
        """
        claimed = self.token(position)
        if claimed == drawn:
            return
        known = claimed is not None and math.isfinite(margin)
        loss = Loss(position, claimed, drawn, margin if known else None)
        self.losses.append(loss)
        self.decided = not within(loss, self.tolerance)

    def found(self, num_tokens: int) -> list[Loss]:
        """The losses once the answer has ended after so many tokens: the claim may go on."""
        claimed = None if self.decided else self.token(num_tokens)
        return [*self.losses, *([] if claimed is None else [Loss(num_tokens, claimed, None)])]


@dataclass(frozen=True)
class _Difference:
    """A field that differs, and whether it does by no more than the tolerance."""

    path: Path
    claimed: Any
    expected: Any
    within: bool

    def told(self) -> ResponseDifference:
        claimed, expected = self.claimed, self.expected
        if isinstance(claimed, str) and isinstance(expected, str):
            claimed, expected = _around_difference(claimed, expected)
        return {
            "field": ".".join(map(str, self.path)),
            "claimed": _told(claimed),
            "expected": _told(expected),
        }


def verdict(
    claim: Claim, expected: TaskResponse, found: Mapping[int, Sequence[Loss]] | None = None
) -> Verdict:
    """The verdict on a claim.

    Args:
        claim: the response, and the tolerance.
        expected: the response of this engine, with token ids. Its tokens are the claimed ones where
            these were within the tolerance.
        found: by choice, the claimed tokens that were not drawn, in order; of each choice only the
            last may be beyond the tolerance. A choice that is not there was drawn without regard
            to the claim.
    """
    claimed = claim.response
    expected_ids = {one["index"]: one.get("token_ids", []) for one in expected["choices"]}
    claimed_ids = {one.index: one.token_ids for one in claimed.choices}
    found = found or {}
    losses = {
        index: found[index]
        if index in found and index in claimed_ids
        else first_loss(claimed_ids.get(index, []), expected_ids.get(index, []))
        for index in {*claimed_ids, *expected_ids}
    }
    beyond = {
        index: loss
        for index, of_choice in losses.items()
        for loss in of_choice
        if not within(loss, claim.tolerance)
    }
    fields = list(_fields(claim, expected, different=beyond.keys()))
    serious = [one for one in fields if not one.within]
    named = _first(beyond.items())
    if beyond or serious:
        word, fields = "different", serious
    else:
        named = _first((index, loss) for index, own in losses.items() for loss in own)
        word = "within_tolerance" if named or fields else "exact"
    given = claimed.system_fingerprint
    return {
        "model": expected["model"],
        "verdict": word,  # type: ignore[typeddict-item]
        "first_difference": named,
        "response_differences": [one.told() for one in fields[:MAX_RESPONSE_DIFFERENCES]],
        "tokens_checked": sum(
            min(len(ids), beyond[index].position + 1) if index in beyond else len(ids)
            for index, ids in claimed_ids.items()
        ),
        "prompt_tokens": expected["usage"]["prompt_tokens"],
        "system_fingerprint": expected["system_fingerprint"],
        "same_fingerprint": None if given is None else given == expected["system_fingerprint"],
    }


def within(loss: Loss, tolerance: float) -> bool:
    """Whether a loss is forgiven. Without a tolerance none is, not even between equal scores."""
    return tolerance > 0 and loss.margin is not None and loss.margin <= tolerance


def _first(losses: Iterable[tuple[int, Loss]]) -> TokenDifference | None:
    """The first of some losses with their choices: by choice, then by position."""
    ordered = sorted(losses, key=lambda one: (one[0], one[1].position))
    if not ordered:
        return None
    choice, loss = ordered[0]
    return {
        "choice": choice,
        "position": loss.position,
        "claimed": loss.claimed,
        "expected": loss.expected,
        "margin": loss.margin,
    }


# --- Fields --------------------------------------------------------------------------------------


def _fields(
    claim: Claim, expected: TaskResponse, different: Iterable[int]
) -> Iterator[_Difference]:
    """The fields that differ, but those that follow from the tokens of ``different`` choices."""
    claimed: dict[str, Any] = claim.response.model_dump(exclude_unset=True)
    known: dict[str, Any] = {**expected}
    different = set(different)
    claimed_choices = {one["index"]: one for one in claimed.pop("choices")}
    choices: dict[int, Choice] = {one["index"]: one for one in known.pop("choices")}
    for name in _MADE_OF_ANSWERS:
        known.pop(name, None)
    for name in _WHERE_GIVEN:
        if claimed.get(name) is None:
            known.pop(name, None)
    for one in (claimed, known):
        one.pop("system_fingerprint", None)  # told as `same_fingerprint`
        if different:
            one.pop("usage", None)
    compare = _Comparison(claim.tolerance)
    yield from compare.values((), claimed, known)
    for index in sorted({*claimed_choices, *choices}):
        if index in different:
            continue
        path = ("choices", index)
        if index not in choices or index not in claimed_choices:
            # A choice without any token; else one of its tokens is already different.
            yield _Difference(path, claimed_choices.get(index), choices.get(index), within=False)
            continue
        choice = {name: value for name, value in choices[index].items() if name != "token_ids"}
        claimed_choice = {k: v for k, v in claimed_choices[index].items() if k != "token_ids"}
        if claimed_choice.get("logprobs") is None:
            choice.pop("logprobs", None)
        yield from compare.values(path, claimed_choice, choice)


class _Comparison:
    """Compares JSON values; numbers that are not counts may differ by the tolerance."""

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance

    def values(self, path: Path, claimed: Any, expected: Any) -> Iterator[_Difference]:
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
        yield _Difference(path, claimed, expected, self._near(claimed, expected))

    def _tops(self, path: Path, claimed: Any, expected: Any) -> Iterator[_Difference]:
        """Of the most probable tokens: by token, because near ones may have changed places.

        A token that is in one list only must be near the end of the other.
        """
        if claimed is None or expected is None or len(claimed) != len(expected):
            yield from self.values(path, claimed, expected)
            return
        ours = {one["token_id"]: one for one in expected}
        theirs = {one["token_id"]: one for one in claimed}
        if len(theirs) < len(claimed):
            yield _Difference(path, claimed, expected, within=False)
            return
        lowest = min((one["logprob"] for one in expected), default=0.0)
        for place, one in enumerate(claimed):
            inner = (*path, place)
            if (same := ours.get(one["token_id"])) is not None:
                yield from self.values(inner, one, same)
            else:
                near = self._near(one["logprob"], lowest)
                yield _Difference((*inner, "token_id"), one["token_id"], None, near)
        missing = [one for token, one in ours.items() if token not in theirs]
        end = min((one["logprob"] for one in claimed), default=0.0)
        for one in missing:
            near = self._near(one["logprob"], end)
            yield _Difference(path, None, one["token_id"], near)

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
