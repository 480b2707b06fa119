"""Canonical JSON (RFC 8785) and its digests: the same bytes for the same value, for everyone."""

import hashlib
from typing import Any

import rfc8785

MAX_INTEGER = 2**53 - 1
"""RFC 8785 writes numbers as 64-bit floats have them, which are exact up to here."""


class NotCanonicalError(ValueError):
    """A JSON value that has no canonical form.

    Attributes:
        path: leads to the value at fault.
        problem: what is wrong with it.
    """

    def __init__(self, path: list[str | int], problem: str) -> None:
        place = ".".join(map(str, path))
        super().__init__(f"{place}: {problem}" if place else problem)
        self.path = path
        self.problem = problem


def canonical(value: Any) -> bytes:
    """The RFC 8785 JSON of a value.

    Raises:
        NotCanonicalError: an integer is beyond 2^53 - 1, a text is not Unicode, or it is nested too
            deeply.
    """
    try:
        return rfc8785.dumps(value)
    except RecursionError:
        raise NotCanonicalError([], "is nested too deeply for RFC 8785 JSON") from None
    except ValueError as error:
        raise _fault(value) or NotCanonicalError([], f"has no RFC 8785 JSON: {error}") from None


def digest(value: Any) -> str:
    """SHA-256 of the RFC 8785 JSON of a value, in hexadecimal digits. Raises as `canonical`."""
    return hashlib.sha256(canonical(value)).hexdigest()


def _fault(value: Any) -> NotCanonicalError | None:
    """The first fault in a value, found without recursion."""
    stack: list[tuple[list[str | int], Any]] = [([], value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, dict):
            if not all(map(_is_unicode, item)):
                return NotCanonicalError(path, "has a key that is not Unicode text")
            stack.extend(([*path, key], child) for key, child in reversed(item.items()))
        elif isinstance(item, list):
            places = reversed(range(len(item)))
            stack.extend(([*path, place], item[place]) for place in places)
        elif isinstance(item, str) and not _is_unicode(item):
            return NotCanonicalError(path, "is not Unicode text: it has half a surrogate pair")
        elif isinstance(item, int) and not -MAX_INTEGER <= item <= MAX_INTEGER:
            return NotCanonicalError(
                path,
                "is an integer beyond 2^53 - 1, which RFC 8785 JSON cannot hold exactly; write it "
                "as a string",
            )
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
