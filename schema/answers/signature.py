"""The signatures of receipts: Ed25519 over canonical JSON, and public keys as JWKs (RFC 8037)."""

import base64
import hashlib
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import with_config
from typing_extensions import TypedDict

from schema.answers.canonical import canonical

SIGNATURE = "signature"
"""The field of a receipt that is not signed."""


@with_config(extra="allow", strict=True)
class PublicKey(TypedDict):
    """A public key as a JWK. `kid` is its thumbprint (RFC 7638)."""

    kty: Literal["OKP"]
    crv: Literal["Ed25519"]
    x: str
    kid: str


def public_key(key: Ed25519PublicKey) -> PublicKey:
    """A key as it is published."""
    x = encode(key.public_bytes_raw())
    thumbprint = hashlib.sha256(canonical({"crv": "Ed25519", "kty": "OKP", "x": x})).digest()
    return {"kty": "OKP", "crv": "Ed25519", "x": x, "kid": encode(thumbprint)}


def sign(fields: dict[str, Any], key: Ed25519PrivateKey) -> str:
    """The signature of a receipt that has all other fields."""
    return encode(key.sign(canonical(fields)))


def is_signed_by(receipt: dict[str, Any], key: PublicKey) -> bool:
    """Whether a receipt's signature is of this key.

    Raises:
        ValueError: the key is not one of Ed25519.
    """
    fields = {name: value for name, value in receipt.items() if name != SIGNATURE}
    public = Ed25519PublicKey.from_public_bytes(decode(key["x"]))
    try:
        public.verify(decode(receipt[SIGNATURE]), canonical(fields))
    except (InvalidSignature, ValueError):
        return False
    return True


def encode(data: bytes) -> str:
    """Base64url without padding, as JWKs have it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """The bytes of `encode`. Raises a `ValueError` if the text is of another form."""
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if encode(data) != text:  # the last letter has bits that mean nothing
        raise ValueError("it is not base64url in its shortest form")
    return data
