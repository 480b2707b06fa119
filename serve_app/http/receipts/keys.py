"""The keys of receipts: the private one that signs, and the public ones that are published.

All are Ed25519 keys in PEM. The private one is read from a file or an environment variable and
stands in no error, log line or `repr`.
"""

from __future__ import annotations

import logging

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from schema.answers.signature import PublicKey, public_key
from serve_app.config import secrets
from serve_app.config.receipt_args import ReceiptArgs

logger = logging.getLogger("ray.serve")

_NEW_KEY = "make one with: openssl genpkey -algorithm ed25519 -out FILE"
_PRIVATE = "PRIVATE KEY-----"


class ReceiptKeys:
    """The key that signs, and those that are published.

    Attributes:
        private: signs.
        published: the public keys; the first is that of ``private``.
    """

    def __init__(self, private: Ed25519PrivateKey, others: list[PublicKey]) -> None:
        self.private = private
        self.published = [public_key(private.public_key()), *others]

    @property
    def key_id(self) -> str:
        """The id of the key that signs."""
        return self.published[0]["kid"]


def read_receipt_keys(args: ReceiptArgs) -> ReceiptKeys:
    """The keys as they are now; after a change the ingress has to be restarted.

    Raises:
        ValueError: one cannot be read, or is no key of this kind; or one is there twice. The
            message begins with the setting at fault.
    """
    source = "key_env" if args.key_file is None else "key_file"
    try:
        private = _private(secrets.read(args.key_file, args.key_env))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    keys = ReceiptKeys(private, [])
    for number, file in enumerate(args.other_public_keys):
        try:
            key = public_key(_public(secrets.read_file(file)))
            if key in keys.published:
                raise ValueError(f"{file}: this key is published already; leave it out")
        except ValueError as error:
            raise ValueError(f"other_public_keys.{number}: {error}") from None
        keys.published.append(key)
    return keys


def receipt_keys_at_start(args: ReceiptArgs) -> ReceiptKeys:
    """As `read_receipt_keys`, with a warning in the log if others can read the private key too."""
    keys = read_receipt_keys(args)
    if warning := readable_by_others(args):
        logger.warning("%s", warning)
    return keys


def readable_by_others(args: ReceiptArgs) -> str | None:
    """A warning if other users of the machine can read the private key; else None."""
    return secrets.readable_by_others(args.key_file, "private key of receipts")


def _private(pem: str) -> Ed25519PrivateKey:
    """The private key in a PEM. The text is never part of an error."""
    try:
        key = load_pem_private_key(pem.encode(), password=None)
    except TypeError:
        raise ValueError(
            "the private key is encrypted, and a server has nobody to ask for its passphrase; "
            "store it unencrypted (openssl pkey -in FILE -out NEW) where only the server can read"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"is not a private key in PEM; {_NEW_KEY}") from None
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"is a private key of another kind than Ed25519; {_NEW_KEY}")
    return key


def _public(pem: str) -> Ed25519PublicKey:
    if _PRIVATE in pem:
        raise ValueError(
            "is a private key, of which only the public half is needed here: "
            "openssl pkey -in FILE -pubout -out PUBLIC"
        )
    try:
        key = load_pem_public_key(pem.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("is not a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("is a public key of another kind than Ed25519")
    return key
