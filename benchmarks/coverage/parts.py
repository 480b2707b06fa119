"""The parts of the table: which architectures each has, and how one of them is compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.coverage import architectures, comparison, vision
from benchmarks.coverage.rows import Row


@dataclass(frozen=True)
class Part:
    """One part of the table.

    Attributes:
        title: above it.
        architectures: all of them.
        row: compares one, in a process of its own.
    """

    title: str
    architectures: Callable[[], Sequence[str]]
    row: Callable[[str], Row]


PARTS = {
    "text": Part("Text", architectures.decoders, comparison.row),
    "vision": Part("Vision-language", vision.architectures, vision.row),
}
