"""Operations that all ranks of a split model run, and the protocol that runs them."""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol, TypeVar

T_contra = TypeVar("T_contra", contravariant=True)
T = TypeVar("T")
R_co = TypeVar("R_co", covariant=True)
R = TypeVar("R")


class Operation(Protocol[T_contra, R_co]):
    """The name and the arguments of something that a rank's runner or KV cache does.

    It can be sent to another process, where it finds that rank's runner or cache.
    """

    @abstractmethod
    def run(self, target: T_contra) -> R_co:
        """Do it on this rank."""


class Ranks(Protocol):
    """Runs operations wherever the model is: in this process, or in others too."""

    def run(self, operation: Operation[T, R], target: T) -> R:
        """Do it on all ranks, which may exchange tensors in it; returns this rank's result."""
        ...

    def gather(self, operation: Operation[T, R], target: T) -> list[R]:
        """Do it on all ranks, which may exchange tensors in it; returns the results of all."""
        ...


class OneRank:
    """The ranks of a model that is not split."""

    def run(self, operation: Operation[T, R], target: T) -> R:
        """Do it here."""
        return operation.run(target)

    def gather(self, operation: Operation[T, R], target: T) -> list[R]:
        """Do it here."""
        return [operation.run(target)]


ONE_RANK: Ranks = OneRank()
