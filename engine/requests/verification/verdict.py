"""The verdict on a claimed response: its tokens and fields, compared with those of this engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

from engine.requests.verification.claimed_tokens import Loss, first_loss, within
from engine.requests.verification.comparison import Comparison, Difference
from schema.answers.receipt import ExecutionRecord
from schema.answers.response import Choice, TaskResponse
from schema.answers.verification import MAX_RESPONSE_DIFFERENCES, Claim, TokenDifference, Verdict

_OF_OTHER_BITS = ("dtype", "quantize_bits", "layout", "trace")
"""What a receipt says of how an answer was computed. A tolerance is for answers of other bits."""
_WHERE_GIVEN = ("prompt_text", "prompt_token_ids", "prompt_logprobs")
"""Fields of a response that a claim may leave out. So may a choice its `logprobs`."""


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


def _fields(claim: Claim, expected: TaskResponse, different: Iterable[int]) -> Iterator[Difference]:
    """The fields that differ, but those that follow from the tokens of ``different`` choices."""
    claimed: dict[str, Any] = claim.response.model_dump(exclude_unset=True)
    known: dict[str, Any] = {**expected}
    different = set(different)
    claimed_choices = {one["index"]: one for one in claimed.pop("choices")}
    choices: dict[int, Choice] = {one["index"]: one for one in known.pop("choices")}
    receipt, record = claimed.pop("receipt", None), known.pop("record", None)
    known.pop("receipt", None)
    if receipt is not None:
        yield from _of_receipt(claim, receipt, record, different)
    for name in _WHERE_GIVEN:
        if claimed.get(name) is None:
            known.pop(name, None)
    for one in (claimed, known):
        one.pop("system_fingerprint", None)  # told as `same_fingerprint`
        if different:
            one.pop("usage", None)
    compare = Comparison(claim.tolerance)
    yield from compare.values((), claimed, known)
    for index in sorted({*claimed_choices, *choices}):
        if index in different:
            continue
        path = ("choices", index)
        if index not in choices or index not in claimed_choices:
            # A choice without any token; else one of its tokens is already different.
            yield Difference(path, claimed_choices.get(index), choices.get(index), within=False)
            continue
        choice = {name: value for name, value in choices[index].items() if name != "token_ids"}
        claimed_choice = {k: v for k, v in claimed_choices[index].items() if k != "token_ids"}
        if claimed_choice.get("logprobs") is None:
            choice.pop("logprobs", None)
        yield from compare.values(path, claimed_choice, choice)


def _of_receipt(
    claim: Claim, receipt: Any, record: ExecutionRecord | None, different: Set[int]
) -> Iterator[Difference]:
    """What a receipt says of how the answer was computed, compared with this engine's record."""
    known: dict[str, Any] = {**(record or {})}
    claimed = {name: value for name, value in receipt.items() if name != "version"}
    for one in (claimed, known):
        choices = enumerate(one.get("choices", ()))
        one["choices"] = [None if index in different else each for index, each in choices]
    for found in Comparison(claim.tolerance).values(("receipt",), claimed, known):
        forgiven = claim.tolerance > 0 and found.path[-1] in _OF_OTHER_BITS
        yield replace(found, within=found.within or forgiven)
