"""Formats and patterns of strings: which ones are enforced, and how."""

from __future__ import annotations

from typing import Any

_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_YEAR = r"(?:000[1-9]|00[1-9][0-9]|0[1-9][0-9]{2}|[1-9][0-9]{3})"
_LEAP = r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29"
_DATE = rf"(?:{_YEAR}-{_DAY}|{_LEAP})"
# Up to microseconds: many readers have no finer times, and none reads a second 60.
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_EXACT = {"date": f"^{_DATE}$", "time": f"^{_TIME}$", "date-time": f"^{_DATE}T{_TIME}$"}
"""Formats that llguidance allows invalid values of (2023-02-29), as patterns (RFC 3339)."""

_ENFORCED = {"duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
"""Formats that llguidance knows. All others are annotations, as JSON Schema has them."""

_WITHOUT_LOOK_AROUND = {
    # pydantic's Decimal as text
    r"^(?!^[-+.]*$)[+-]?0*\d*\.?\d*$": r"^[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)$",
    # zod's email
    r"^(?!\.)(?!.*\.\.)([A-Za-z0-9_'+\-\.]*)[A-Za-z0-9_+-]"
    r"@([A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$": (
        r"^(?:[A-Za-z0-9_'+\-]+\.)*[A-Za-z0-9_'+\-]*[A-Za-z0-9_+\-]"
        r"@(?:[A-Za-z0-9][A-Za-z0-9\-]*\.)+[A-Za-z]{2,}$"
    ),
}
"""Patterns that well-known libraries write, as equal ones that Rust's regex syntax has."""

_LOOK_AROUND = ("(?=", "(?!", "(?<=", "(?<!")


def constrained(node: dict[str, Any]) -> dict[str, Any]:
    """A schema's keywords of strings, rewritten; the others as they are."""
    pattern, format_ = node.get("pattern"), node.get("format")
    changes: dict[str, Any] = {}
    if isinstance(pattern, str) and pattern in _WITHOUT_LOOK_AROUND:
        changes["pattern"] = _WITHOUT_LOOK_AROUND[pattern]
    if not isinstance(format_, str):
        return node | changes
    exact = _EXACT.get(format_)
    if exact is None and format_ in _ENFORCED:
        return node | changes
    rest = {key: value for key, value in (node | changes).items() if key != "format"}
    if exact is None:
        return rest
    if "pattern" not in rest:
        return rest | {"pattern": exact}
    both = rest.get("allOf")
    return rest | {"allOf": [*(both if isinstance(both, list) else ()), {"pattern": exact}]}


def needs_look_around(node: Any) -> bool:
    """Whether a schema has a pattern that Rust's regex syntax cannot express."""
    pattern = constrained(node).get("pattern") if isinstance(node, dict) else None
    return isinstance(pattern, str) and any(mark in pattern for mark in _LOOK_AROUND)
