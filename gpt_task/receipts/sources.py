"""Where claims and keys come from: files, and a server's route."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from pydantic import TypeAdapter, ValidationError

from gpt_task.receipts.claim import Claim, Uncheckable
from schema.answers.signature import PublicKey, decode, public_key
from schema.errors import TaskArgsInvalid
from schema.json_values import parse_json

KEYS_ROUTE = "/v1/receipts/keys"
TIMEOUT_S = 600.0
_MAX_ANSWER = 64_000_000

_KEY = TypeAdapter(PublicKey)


def read_claim(file: Path) -> Claim:
    """The claim in a file. Raises `Uncheckable`."""
    value = _json(_read(file), str(file))
    if not isinstance(value, dict):
        raise Uncheckable(f"{file}: must be an object with task (or request) and response")
    asked = [name for name in ("task", "request") if name in value]
    if len(asked) != 1:
        raise Uncheckable(f"{file}: must have one of task and request")
    for name in (asked[0], "response"):
        if not isinstance(value.get(name), dict):
            raise Uncheckable(f"{file}: {name} must be there, and be an object")
    return Claim(value[asked[0]], value["response"], is_task=asked[0] == "task")


def read_keys(source: str) -> dict[str, PublicKey]:
    """Published keys by their ids.

    Args:
        source: the address of a server or of its keys; or a file: a JWK Set, as that route answers,
            or a public key in PEM.

    Raises:
        Uncheckable: there are none.
    """
    if is_address(source):
        text = ask(at(source, KEYS_ROUTE))
    else:
        text = _read(Path(source))
        if text.lstrip().startswith(b"-----"):
            key = _from_pem(text, source)
            return {key["kid"]: key}
    value = _json(text, source)
    listed = value.get("keys") if isinstance(value, dict) else None
    if not isinstance(listed, list):
        raise Uncheckable(f"{source}: must be a JWK Set, an object with the list keys")
    if not listed:
        raise Uncheckable(f"{source}: has no keys; the server signs no receipts")
    keys = [known for each in listed if (known := _from_jwk(each)) is not None]
    return {known["kid"]: known for known in keys}


def is_address(source: str) -> bool:
    """Whether a source is the address of a server."""
    return source.startswith(("http://", "https://"))


def at(address: str, route: str) -> str:
    """The address of a route; an address that has a path of its own below it stays as it is."""
    parts = urlsplit(address)
    if parts.path.endswith(route):
        return address
    return urlunsplit(parts._replace(path=parts.path.rstrip("/") + route))


def ask(address: str, body: Any = None, key: str | None = None) -> bytes:
    """What a server answers.

    Args:
        address: with http or https.
        body: to send as JSON; None to send none.
        key: an API key.

    Raises:
        Uncheckable: it does not answer, or with an error, whose message is told.
    """
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    data = None
    if body is not None:
        data = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        headers["content-type"] = "application/json"
    try:
        # `is_address` lets only http and https pass.
        asked = urllib.request.Request(address, data, headers)  # noqa: S310
        with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:  # noqa: S310
            text: bytes = answer.read(_MAX_ANSWER + 1)
    except urllib.error.HTTPError as error:
        raise Uncheckable(f"{address}: answered {error.code}: {_message(error)}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise Uncheckable(f"{address}: does not answer: {reason}") from None
    if len(text) > _MAX_ANSWER:
        raise Uncheckable(f"{address}: the answer is larger than {_MAX_ANSWER} bytes")
    return text


def _message(error: urllib.error.HTTPError) -> str:
    """What an error of the server says, if it is one of ours."""
    try:
        return str(parse_json(error.read(_MAX_ANSWER))["error"]["message"])
    except (TaskArgsInvalid, OSError, KeyError, TypeError):
        return str(error.reason)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise Uncheckable(f"{file}: {error.strerror}") from None


def _json(text: bytes, source: str) -> Any:
    try:
        return parse_json(text)
    except TaskArgsInvalid as error:
        raise Uncheckable(f"{source}: {error.message.replace('The body', 'it', 1)}") from None


def _from_pem(text: bytes, source: str) -> PublicKey:
    try:
        key = load_pem_public_key(text)
    except (ValueError, UnsupportedAlgorithm):
        raise Uncheckable(f"{source}: is not a public key in PEM") from None
    if not isinstance(key, Ed25519PublicKey):
        raise Uncheckable(f"{source}: is a key of another kind than Ed25519")
    return public_key(key)


def _from_jwk(value: Any) -> PublicKey | None:
    """A key of a set; None if it is of another kind, or its id is not its thumbprint."""
    try:
        key = _KEY.validate_python(value)
        real = public_key(Ed25519PublicKey.from_public_bytes(decode(key["x"])))
    except (ValidationError, ValueError):
        return None
    return real if real["kid"] == key["kid"] else None
