"""Canonical JSON against the examples of RFC 8785, signatures against those of other RFCs."""

import hashlib
import json
import struct
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from schema import schemas
from schema.answers.canonical import NotCanonicalError, canonical, digest
from schema.answers.signature import decode, encode, is_signed_by, public_key

# RFC 8785, section 3.2.2 and 3.2.3.
EXAMPLE = r"""{
  "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
  "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
  "literals": [null, true, false]
}"""
CANONICAL = (
    '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
    r'"string":"€$\u000f\nA' + "'" + r'B\"\\\\\"/"}'
)
SORTED = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}
# RFC 8785, appendix B.
NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555553": "333333333.3333332",
    "becbf647612f3696": "-0.0000033333333333333333",
    "43143ff3c1cb0959": "1424953923781206.2",
}
# RFC 8037, appendix A: a key, and its thumbprint.
PRIVATE = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
PUBLIC = {
    "kty": "OKP",
    "crv": "Ed25519",
    "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",
    "kid": "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k",
}


def test_the_example_of_the_standard() -> None:
    assert canonical(json.loads(EXAMPLE)) == CANONICAL.encode()
    assert digest(json.loads(EXAMPLE)) == hashlib.sha256(CANONICAL.encode()).hexdigest()


def test_keys_are_sorted_by_utf_16() -> None:
    order = [SORTED[key] for key in json.loads(canonical(SORTED))]
    assert order == [2, 4, 6, 7, 1, 5, 3]


@pytest.mark.parametrize(("bits", "text"), NUMBERS.items())
def test_numbers(bits: str, text: str) -> None:
    (number,) = struct.unpack(">d", bytes.fromhex(bits))
    assert canonical(number) == text.encode()


@pytest.mark.parametrize(
    ("value", "path", "said"),
    [
        ({"a": [0, {"b": 2**53}]}, ["a", 1, "b"], "beyond 2^53 - 1"),
        ([-(2**53)], [0], "beyond 2^53 - 1"),
        ({"a": 1, "b": "\ud800"}, ["b"], "half a surrogate pair"),
        ({"a": {"\udfff": 1}}, ["a"], "a key that is not Unicode"),
        ({"a": object()}, [], "has no RFC 8785 JSON"),
        ([float("nan")], [], "has no RFC 8785 JSON"),
    ],
)
def test_what_has_no_canonical_form(value: Any, path: list[Any], said: str) -> None:
    with pytest.raises(NotCanonicalError) as caught:
        digest(value)
    assert caught.value.path == path
    assert said in str(caught.value)


def test_deep_values_end_with_an_error() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(NotCanonicalError, match="nested too deeply"):
        canonical(deep)
    while isinstance(deep, list):  # else Python frees it recursively
        (deep,) = deep


def test_integers_up_to_the_limit() -> None:
    assert canonical([2**53 - 1, -(2**53) + 1]) == b"[9007199254740991,-9007199254740991]"


def test_a_public_key_as_the_standard_has_it() -> None:
    private = Ed25519PrivateKey.from_private_bytes(decode(PRIVATE))
    assert public_key(private.public_key()) == PUBLIC


def test_the_published_example_is_signed() -> None:
    (receipt,) = schemas()["receipt"]["examples"]
    key: Any = PUBLIC
    assert is_signed_by(receipt, key)
    for name in set(receipt) - {"signature"}:
        assert not is_signed_by({**receipt, name: "another"}, key)
        assert not is_signed_by({k: v for k, v in receipt.items() if k != name}, key)
    assert not is_signed_by(receipt | {"new": 1}, key)


def test_base64url_has_one_spelling() -> None:
    for size in range(70):
        data = bytes(range(256 - size, 256))
        assert decode(encode(data)) == data
    for text in ("AB", "AAB", "AA==", "A", "+A", "/w", "A A", "é", "AA\n"):
        with pytest.raises(ValueError, match=r".+"):
            decode(text)
