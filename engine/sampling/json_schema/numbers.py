"""Bounds of numbers, such that every reader takes an answer's numbers for valid ones.

llguidance compares the digits of a number with bounds of 64-bit floats; readers compare floats, or
integers. Every change here makes bounds narrower: what is allowed is valid as the client meant it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import ROUND_CEILING, ROUND_FLOOR, Context, Decimal
from typing import Any, NamedTuple

from engine.sampling.json_schema.document import Document

LARGEST = 2**63 - 1024
"""The largest integer in an answer: the largest 64-bit float that is a signed 64-bit integer."""
SMALLEST = 1e-15
"""The smallest number above 0, where 0 is excluded: its digits have to be written out."""
_EXACT = 2**53  # beyond it, floats skip integers
_MAX_FACTOR = 2**32 - 1  # llguidance counts multiples in 32 bits

# Where a bound is excluded, 0.999999999999999999 must not be written: it is read as 1. Decimals of
# nine places do not round to a bound of six digits before the point.
_STEP = 1e-9
_PLAIN = 10**6
_FAR = 1e-6  # bounds that are closer have too few such decimals between them

_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_KEYWORDS = (*_BOUNDS, "multipleOf")


def bounded(node: dict[str, Any], document: Document) -> dict[str, Any]:
    """A schema's keywords of numbers, rewritten; the others as they are.

    Raises:
        TaskArgsInvalid: a bound cannot be kept to.
    """
    for keyword in ("const", "enum"):
        for value in _numbers(node.get(keyword)):
            _check_constant(value, document)
    kinds = node.get("type")
    kinds = [kinds] if isinstance(kinds, str) else kinds
    given = any(keyword in node for keyword in _KEYWORDS)
    if isinstance(kinds, list):
        if "integer" not in kinds and "number" not in kinds:
            return node
    elif not given:
        return node
    if not given and ("const" in node or "enum" in node):
        return node
    integer = isinstance(kinds, list) and "integer" in kinds and "number" not in kinds
    low, high = _lower(node, document), _upper(node, document)
    step = node.get("multipleOf")
    if step is not None and not _positive(step):
        document.refuse("multipleOf must be a number above 0")
    if not integer and low is None and high is None and step is None:
        return node  # the guard keeps it finite, with an exponent if it wants one
    most = LARGEST if step is None else _EXACT
    tight = _integers(low, high, most) if integer else _floats(low, high, most)
    if tight is None:
        if low and high and low.nearest > high.nearest:
            return node  # llguidance says that nothing lies in between
        kind = "integer that is a 64-bit float" if integer else "64-bit float"
        document.refuse(f"no {kind} lies between {-most} and {most} with {_described(node)}")
    made = {key: value for key, value in node.items() if key not in _BOUNDS}
    made |= {"minimum": tight[0], "maximum": tight[1]}
    if not integer and not document.has_multiples and tight[1] - tight[0] > _FAR:
        for keyword, limit in (("minimum", low), ("maximum", high)):
            if limit is not None and limit.excluded is not None:
                del made[keyword]
                made["exclusive" + keyword.capitalize()] = limit.excluded
                made["multipleOf"] = _STEP
    return made


def check_multiples(steps: set[float], document: Document) -> None:
    """Refuse ``multipleOf`` of which llguidance could not compute the common multiples."""
    scaled = sorted({_decimal(step) for step in steps if _positive(step)})
    for index, (one, places) in enumerate(scaled):
        for other, more in scaled[index + 1 :]:
            document.spend()
            most = max(places, more)
            if one * 10 ** (most - places) * other * 10 ** (most - more) > _MAX_FACTOR:
                document.refuse(
                    "it has several multipleOf whose product has more than 32 bits; keep one"
                )


class _Limit(NamedTuple):
    """A lower or an upper bound.

    Attributes:
        nearest: the bound, or if it is excluded, its neighbour.
        excluded: the bound, if it is excluded, and if decimals of `_STEP` do not round to it.
    """

    nearest: float | int
    excluded: float | int | None = None


def _lower(node: dict[str, Any], document: Document) -> _Limit | None:
    bounds = _read(node, "minimum", "exclusiveMinimum", 1, document)
    return max(bounds, key=lambda limit: limit.nearest, default=None)


def _upper(node: dict[str, Any], document: Document) -> _Limit | None:
    bounds = _read(node, "maximum", "exclusiveMaximum", -1, document)
    return min(bounds, key=lambda limit: limit.nearest, default=None)


def _read(
    node: dict[str, Any], included: str, excluded: str, inwards: int, document: Document
) -> list[_Limit]:
    bound, beyond = node.get(included), node.get(excluded)
    if isinstance(beyond, bool):  # draft 4: whether the other keyword's bound is excluded
        bound, beyond = (None, bound) if beyond else (bound, None)
    for value, name in ((bound, included), (beyond, excluded)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            document.refuse(f"{name} must be a number")
    limits = [] if bound is None else [_Limit(bound)]
    if beyond is not None:
        is_plain = abs(beyond) < _PLAIN and _as_read(float(beyond)) == beyond
        limits.append(_Limit(_neighbour(beyond, inwards), beyond if is_plain else None))
    return limits


def _neighbour(bound: float | int, direction: int) -> float:
    """The next float from a bound, and from its float, in a direction."""
    if bound == 0:
        return direction * SMALLEST
    return math.nextafter(float(bound), direction * math.inf)


def _integers(low: _Limit | None, high: _Limit | None, most: int) -> tuple[int, int] | None:
    """Integers that floats can represent, because llguidance reads bounds as floats."""
    least = -most if low is None else max(math.ceil(low.nearest), -most)
    largest = most if high is None else min(math.floor(high.nearest), most)
    if least > largest or largest < -most or least > most:
        return None
    while int(float(least)) < least:
        least = int(math.nextafter(float(least), math.inf))
    while int(float(largest)) > largest:
        largest = int(math.nextafter(float(largest), -math.inf))
    return (least, largest) if least <= largest else None


def _floats(
    low: _Limit | None, high: _Limit | None, most: int
) -> tuple[float | int, float | int] | None:
    least = -most if low is None else max(low.nearest, -most)
    largest = most if high is None else min(high.nearest, most)
    if abs(least) < SMALLEST:
        least = 0 if least <= 0 else SMALLEST
    if abs(largest) < SMALLEST:
        largest = 0 if largest >= 0 else -SMALLEST
    least, largest = _readable(least, ROUND_CEILING), _readable(largest, ROUND_FLOOR)
    return (least, largest) if least <= largest else None


def _readable(bound: float | int, rounding: str) -> float | int:
    """The next bound in a direction that llguidance reads as it is."""
    exact = Decimal(bound)
    if exact == exact.to_integral_value() and int(float(exact)) == exact:
        return int(exact)  # it reads an integer without loss
    for digits in range(17, 0, -1):
        rounded = float(Context(prec=digits, rounding=rounding).plus(exact))
        inside = rounded >= bound if rounding == ROUND_CEILING else rounded <= bound
        if inside and _as_read(rounded) == rounded:
            return rounded
    return bound


def _as_read(value: float) -> float:
    """What serde_json, which is not exact, reads of a number as Python writes it."""
    sign, digits, exponent = Decimal(repr(value)).as_tuple()
    assert isinstance(exponent, int)
    read = float(int("".join(map(str, digits))))
    if exponent < -308:
        read, exponent = read / 1e308, exponent + 308
    power = float(f"1e{abs(exponent)}")
    read = read * power if exponent >= 0 else read / power
    return -read if sign else read


def _check_constant(value: float | int, document: Document) -> None:
    if isinstance(value, int):
        exact = int(float(value)) == value and abs(value) <= LARGEST
    else:  # llguidance writes all digits, and some readers compare those of integers
        written = Decimal(repr(value))
        exact = _as_read(value) == value and (abs(value) < _EXACT or written == Decimal(value))
    if not exact:
        document.refuse(
            f"the number {value} of a const or an enum has too many digits to be kept exactly; "
            "write it as a string"
        )


def _numbers(value: Any) -> Iterator[float | int]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield value


def _positive(step: Any) -> bool:
    return isinstance(step, int | float) and not isinstance(step, bool) and step > 0


def _decimal(step: float) -> tuple[int, int]:
    """A step as an integer and the places that it is shifted by, as llguidance computes it."""
    places = 0
    while step % 1 and places < 400:
        step *= 10
        places += 1
    return int(step), places


def _described(node: dict[str, Any]) -> str:
    return ", ".join(f"{key} {node[key]}" for key in _KEYWORDS if key in node)
