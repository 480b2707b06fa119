"""Checks a receipt offline: its signature, and that it is of this request and this response."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter, ValidationError

from gpt_task.receipts.claim import (
    CHAT_ROUTE,
    COMPLETION_ROUTE,
    TASK_ROUTE,
    Claim,
    ReceiptWrong,
    Uncheckable,
)
from schema.answers.canonical import NotCanonicalError, digest
from schema.answers.receipt import VERSION, Receipt
from schema.answers.signature import PublicKey, is_signed_by
from schema.json_values import clipped

_RECEIPT = TypeAdapter(Receipt)
_SAME_IN_BOTH = ("model", "system_fingerprint", "usage")


def check(claim: Claim, keys: Mapping[str, PublicKey]) -> list[str]:
    """Check a claim's receipt.

    Args:
        claim: the request and the response.
        keys: published keys by their ids.

    Returns:
        What was found right, and what could not be compared, in sentences.

    Raises:
        ReceiptWrong: the receipt, the request or the response was altered.
        Uncheckable: there is no receipt, its version or its key is not known.
    """
    receipt = signed_receipt(claim.receipt, keys)
    said = [f"The receipt was signed by the key {receipt['key_id']}."]
    _check_request(claim, receipt)
    said.append(f"It is of this request to {receipt['route']}.")
    said += _check_response(claim, receipt)
    return said


def signed_receipt(value: Any, keys: Mapping[str, PublicKey]) -> Receipt:
    """A receipt whose signature is of one of the keys. Raises as `check`."""
    if not isinstance(value, dict):
        raise ReceiptWrong("receipt: must be an object")
    version = value.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise Uncheckable(
            f"receipt.version: is {clipped(repr(version))}, and this program knows {VERSION} only"
        )
    try:
        receipt = _RECEIPT.validate_python(value)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, ("receipt", *fault["loc"])))
        raise ReceiptWrong(f"{place}: {fault['msg']}; the receipt was altered") from None
    key = keys.get(receipt["key_id"])
    if key is None:
        known = ", ".join(keys) or "none"
        raise Uncheckable(f"receipt.key_id: {receipt['key_id']} is not a known key ({known})")
    try:
        is_right = is_signed_by(value, key)
    except ValueError as error:
        raise Uncheckable(f"key {receipt['key_id']}: is not an Ed25519 key: {error}") from None
    if not is_right:
        raise ReceiptWrong("receipt.signature: is not of this receipt; the receipt was altered")
    return receipt


def _check_request(claim: Claim, receipt: Receipt) -> None:
    if claim.is_task and receipt["route"] != TASK_ROUTE:
        raise ReceiptWrong(f"receipt.route: is {receipt['route']}, where no task is sent")
    try:
        digested = digest(claim.request)
    except NotCanonicalError as error:
        raise ReceiptWrong(f"request: {error}; no receipt is signed for this") from None
    if digested != receipt["request_digest"]:
        raise ReceiptWrong("receipt.request_digest: is of another request; the request was altered")
    seed = claim.request.get("seed")
    if seed is None and claim.is_task:
        seed = 0
    if seed is not None and seed != receipt["seed"]:
        raise ReceiptWrong(f"receipt.seed: is {receipt['seed']}, and the request's is {seed}")


def _check_response(claim: Claim, receipt: Receipt) -> list[str]:
    response = claim.response
    expected = {name: value for name, value in receipt.items() if name in _SAME_IN_BOTH}
    if receipt["route"] not in (TASK_ROUTE, CHAT_ROUTE, COMPLETION_ROUTE):
        _compare("response", response, {**expected, "usage": response.get("usage")})
        return [f"Answers of {receipt['route']} are not compared with it, but for their model."]
    _compare("response", response, expected)
    if "seed" in response and response["seed"] != receipt["seed"]:
        raise ReceiptWrong(f"response.seed: is not {receipt['seed']}, as the receipt says")
    choices = claim.choices()
    if len(choices) != len(receipt["choices"]):
        raise ReceiptWrong(
            f"response.choices: are {len(choices)}, and the receipt is of {len(receipt['choices'])}"
        )
    echoed = receipt["route"] == COMPLETION_ROUTE and bool(claim.request.get("echo"))
    with_tokens = 0
    for number, (choice, signed) in enumerate(zip(choices, receipt["choices"], strict=True)):
        place = f"response.choices.{number}"
        _compare(
            place, choice, {"index": signed["index"], "finish_reason": signed["finish_reason"]}
        )
        if not echoed:
            _check_digest(f"{place}.message", choice["message"], signed["message_digest"])
        if choice.get("token_ids") is not None:
            _check_digest(f"{place}.token_ids", choice["token_ids"], signed["token_ids_digest"])
            with_tokens += 1
    said = ["It is of this response."]
    if echoed:
        said.append("The texts begin with the prompt and were not compared.")
    if not with_tokens:
        said.append("The response has no token ids to compare (return_token_ids).")
    return said


def _compare(place: str, values: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name, value in expected.items():
        if not _has_digest(values.get(name), digest(value)):
            raise ReceiptWrong(
                f"{place}.{name}: is not {clipped(repr(value), 200)}, as the receipt says; the "
                "response was altered"
            )


def _check_digest(place: str, value: Any, expected: str) -> None:
    if not _has_digest(value, expected):
        raise ReceiptWrong(f"{place}: has another digest than the receipt's; it was altered")


def _has_digest(value: Any, expected: str) -> bool:
    try:
        return digest(value) == expected
    except NotCanonicalError:
        return False
