"""The keys that clients must send, read from a file or an environment variable.

One key a line, as ``name: key`` or ``name: sha256:<64 hexadecimal digits>`` (the digest of the
key); ``#`` begins a comment line. In an environment variable a comma may stand for a line break.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
from collections.abc import Mapping

from serve_app.config import secrets
from serve_app.config.limit_args import KEY_NAME, AuthArgs

logger = logging.getLogger("ray.serve")

# RFC 6750's characters, and enough of them that a key cannot be guessed.
_KEY = re.compile(r"[A-Za-z0-9._~+/-]{16,200}={0,2}")
_DIGEST = re.compile(r"sha256:([0-9a-fA-F]{64})")


class Keys:
    """The keys by name. Only digests are kept; no error, log line or `repr` shows a key."""

    def __init__(self, digests: Mapping[str, bytes]) -> None:
        self._digests = dict(digests)

    @property
    def names(self) -> list[str]:
        """The keys' names."""
        return list(self._digests)

    def name_of(self, key: str) -> str | None:
        """The name of a key, None if it is unknown; takes the same time for any key."""
        digest = _digest(key)
        found = None
        for name, known in self._digests.items():
            if hmac.compare_digest(digest, known):
                found = name
        return found


def read_keys(auth: AuthArgs) -> Keys:
    """The keys as they are now; after a change the ingress has to be restarted.

    Raises:
        ValueError: the file or the variable is missing or faulty. It names the line without its
            text.
    """
    source = "keys_env" if auth.keys_file is None else "keys_file"
    try:
        keys = parse_keys(_text(auth))
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if unknown := [name for name in auth.keys if name not in keys.names]:
        raise ValueError(f"keys.{unknown[0]}: there is no key of this name")
    return keys


def keys_at_start(auth: AuthArgs) -> Keys:
    """As `read_keys`, with a warning in the log if others can read them too."""
    keys = read_keys(auth)
    if warning := readable_by_others(auth):
        logger.warning("%s", warning)
    return keys


def parse_keys(text: str) -> Keys:
    """Keys from lines; raises as `read_keys`."""
    digests: dict[str, bytes] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, key = (part.strip() for part in line.partition(":"))
        if not colon or not KEY_NAME.fullmatch(name):
            # The line is not shown, because it may be a key without a name.
            raise ValueError(f"line {number} does not begin with a name and a colon")
        if hashed := _DIGEST.fullmatch(key):
            digest = bytes.fromhex(hashed[1])
        elif _KEY.fullmatch(key):
            digest = _digest(key)
        else:
            raise ValueError(
                f"line {number}: a key is 16 to 200 letters, digits and any of ._~+/- (= at its "
                "end), or sha256: and 64 hexadecimal digits"
            )
        if name in digests or digest in digests.values():
            raise ValueError(f"line {number}: the name or the key is there twice")
        digests[name] = digest
    if not digests:
        raise ValueError("there is no key in it")
    return Keys(digests)


def readable_by_others(auth: AuthArgs) -> str | None:
    """A warning if other users of the machine can read the file of keys; else None."""
    return secrets.readable_by_others(auth.keys_file, "keys")


def _text(auth: AuthArgs) -> str:
    text = secrets.read(auth.keys_file, auth.keys_env)
    return text if auth.keys_env is None else text.replace(",", "\n")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
