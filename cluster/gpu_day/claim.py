"""A claim about a device, and what a proof of one gets and says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

DEMO_MODEL = Path(__file__).resolve().parents[2] / "demo" / "model"

Device = Literal["cpu", "cuda"]
Found = dict[str, Any]
"""What a proof has seen, by name: numbers, words and lists that JSON can hold."""


class NotShownError(Exception):
    """The claim does not hold on this machine. The text says what was seen instead."""


class NotHereError(Exception):
    """The claim cannot be tried on this machine. The text says what it would take."""


@dataclass(frozen=True)
class Bench:
    """What a proof works with.

    Attributes:
        device: the kind of device.
        folder: for models, which later proofs use too.
        small: whether tiny models do: for a dry run, in which speed means nothing.
    """

    device: Device
    folder: Path
    small: bool = False

    def needs_cuda(self) -> None:
        """End a proof that says something about CUDA alone.

        Raises:
            NotHereError: the device is another one.
        """
        if self.device != "cuda":
            raise NotHereError("needs CUDA")


Proof = Callable[[Bench], Found]
"""Raises `NotShownError`, `NotHereError`, or anything that a broken installation raises."""

Status = Literal["shown", "not shown", "failed", "too slow", "not here", "not tried"]


@dataclass(frozen=True)
class Claim:
    """One row of the ledger.

    Attributes:
        name: for ``--only`` and for files.
        says: what is claimed.
        proof: a function of a module, ``module:function``, so that another process finds it.
        limit_s: how long it may take. Where a day has less left, it gets that.
    """

    name: str
    says: str
    proof: str
    limit_s: float


@dataclass(frozen=True)
class Result:
    """What became of a claim.

    Attributes:
        reason: why it was not shown; empty if it was.
        seconds: how long its process ran.
    """

    name: str
    says: str
    status: Status
    reason: str = ""
    found: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def told(self) -> str:
        """What was found, or why nothing was, in one line."""
        words = self.reason or "; ".join(f"{name} {value}" for name, value in self.found.items())
        return " ".join(words.split())
