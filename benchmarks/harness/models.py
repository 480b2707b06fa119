"""The model that the servers of a benchmark serve."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ServedModel:
    """The model that all servers of one run serve, in one directory.

    Attributes:
        source: its directory, or the id of a repository of the hub.
        dtype: of the arithmetic.
        images: whether it sees images.
        padded: whether prompts are filled up to their length with random letters.
        told: whether it has to be told to write something long. Random weights need not: the
            answers are always as long as was asked for.
    """

    source: str
    dtype: str
    images: bool
    padded: bool
    told: bool
