"""Types of GPUs under the names that Ray gives them, to which replicas can be pinned."""

from __future__ import annotations

import difflib
from typing import Annotated

from pydantic import AfterValidator
from ray.util.accelerators import accelerators

_DATA_CENTER = frozenset(
    value for name, value in vars(accelerators).items() if name.startswith("NVIDIA_")
)
# Ray 2.60 has no constants for these; it makes the names of what the driver calls the cards.
_OTHERS = frozenset(
    {"A10", "A16", "A2", "A30", "A40", "L40", "GB10"}
    | {f"RTX-{card}" for card in ("A2000", "A4000", "A4500", "A5000", "A5500", "A6000")}
    | {f"RTX-{card}" for card in ("2000", "4000", "4500", "5000", "6000")}  # Ada generation
    | {f"RTX-PRO-{card}" for card in ("2000", "4000", "4500", "5000", "6000")}
    | {
        f"GeForce-RTX-{card}"
        for card in (
            *("2060", "2070", "2080", "2080-Ti"),
            *("3060", "3060-Ti", "3070", "3070-Ti", "3080", "3080-Ti", "3090", "3090-Ti"),
            *("4060", "4060-Ti", "4070", "4070-SUPER", "4070-Ti", "4070-Ti-SUPER"),
            *("4080", "4080-SUPER", "4090", "4090-D"),
            *("5050", "5060", "5060-Ti", "5070", "5070-Ti", "5080", "5090", "5090-D"),
        )
    }
)
ACCELERATOR_TYPES = tuple(sorted(_DATA_CENTER | _OTHERS))


def check_accelerator_type(name: str) -> str:
    """The name itself; a `ValueError` with the nearest one if Ray gives it to no GPU.

    Strict, because Ray is not: replicas of a misspelt type wait for such a node for ever.
    """
    if name in ACCELERATOR_TYPES:
        return name
    # RTX5090, rtx-5090 and GeForce RTX 5090 all mean GeForce-RTX-5090.
    plain = {_plain(known): known for known in ACCELERATOR_TYPES}
    near = difflib.get_close_matches(_plain(name), plain, n=1)
    if near:
        raise ValueError(f"Ray knows no GPU type {name!r}; did you mean {plain[near[0]]!r}?")
    raise ValueError(f"Ray knows no GPU type {name!r}; the types are {', '.join(plain.values())}")


def _plain(name: str) -> str:
    for ignored in ("nvidia", "geforce", "tesla", "-", " ", "_"):
        name = name.lower().replace(ignored, "")
    return name


AcceleratorType = Annotated[str, AfterValidator(check_accelerator_type)]
