"""How a layer is called: its tensors in order, and everything else, which must stay the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch


class CallChangedError(RuntimeError):
    """A layer is called in another way than it was when it was compiled."""


class UnknownArgumentError(TypeError):
    """An argument, or what a layer returns, is nothing that compiled layers know."""


_TENSOR = object()
_PLAIN = (bool, int, float, str, torch.dtype, torch.device)


def pattern_of(value: Any) -> Any:
    """A value with a mark in the place of each tensor. Raises `UnknownArgumentError`."""
    if isinstance(value, torch.Tensor):
        return _TENSOR
    if type(value) in (list, tuple):
        return tuple(pattern_of(each) for each in value)
    if value is None or isinstance(value, _PLAIN):
        return value
    raise UnknownArgumentError(f"a {type(value).__name__}")


def tensors_in(value: Any) -> list[torch.Tensor]:
    """The tensors of arguments or of results, in order."""
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for each in value for tensor in tensors_in(each)]
    return []


def filled(pattern: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """A pattern with tensors in the places of its marks."""
    left = iter(tensors)

    def fill(part: Any) -> Any:
        if part is _TENSOR:
            return next(left)
        return tuple(map(fill, part)) if isinstance(part, tuple) else part

    return fill(pattern)


def _collect(value: Any, pattern: Any, found: list[torch.Tensor]) -> None:
    """Append the tensors of a value of this pattern; called for each layer of each forward."""
    if pattern is _TENSOR and isinstance(value, torch.Tensor):
        found.append(value)
    elif (
        isinstance(pattern, tuple)
        and isinstance(value, list | tuple)
        and len(value) == len(pattern)
    ):
        for each, part in zip(value, pattern, strict=True):
            _collect(each, part, found)
    elif type(value) is not type(pattern) or value != pattern:
        raise CallChangedError(f"with a {type(value).__name__} in the place of {pattern}")


@dataclass(frozen=True)
class CallForm:
    """The arguments of a layer's forward, with marks in the places of tensors."""

    values: tuple[Any, ...]
    num_positional: int
    names: tuple[str, ...]

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallForm:
        """The form of a call. Raises `UnknownArgumentError`."""
        return cls(pattern_of((*args, *kwargs.values())), len(args), tuple(kwargs))

    def tensors(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
        """The tensors of a call of this form.

        Raises:
            CallChangedError: it has another form.
        """
        if len(args) != self.num_positional or tuple(kwargs) != self.names:
            raise CallChangedError(f"with {len(args)} arguments and {', '.join(kwargs)}")
        found: list[torch.Tensor] = []
        for value, pattern in zip((*args, *kwargs.values()), self.values, strict=True):
            _collect(value, pattern, found)
        return found

    def arguments(self, tensors: Sequence[torch.Tensor]) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a call with these tensors."""
        values = filled(self.values, tensors)
        named = dict(zip(self.names, values[self.num_positional :], strict=True))
        return list(values[: self.num_positional]), named
