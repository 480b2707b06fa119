"""Which deployment runs a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps
from typing import NamedTuple

from pydantic_core import from_json

from schema.errors import ModelInvalid, TaskArgsInvalid
from schema.json_values import MAX_BRACKETS
from schema.task import Task
from serve_app.config.app_args import POOL, ModelArgs, PoolArgs


class Wanted(NamedTuple):
    """What decides where a task goes, under the names that it has in a `Task`."""

    model: str
    dtype: str
    quantize_bits: int | None


def peek_variant(body: bytes) -> Wanted | None:
    """Which variant of which model a body asks for, a task's or one of OpenAI's.

    Nothing else of it is looked at. None if that is not plain to see: validation will say why.
    """
    if body.count(b"[") + body.count(b"{") > MAX_BRACKETS:
        return None
    try:
        # A hundred times as fast for an image as the parser that accounts for every byte.
        fields = from_json(body)
    except ValueError:
        return None
    match fields:
        case {"model": str(model)}:
            dtype, bits = fields.get("dtype"), fields.get("quantize_bits")
        case _:
            return None
    if isinstance(dtype, str | None) and isinstance(bits, int | None):
        return Wanted(model, dtype or "auto", bits)
    return None


@dataclass(frozen=True)
class Route:
    """Where a task goes.

    Attributes:
        deployment: runs it.
        session: tasks of the same session go to the same replica, where their model is loaded; None
            where all replicas are alike.
    """

    deployment: str
    session: str | None = None


class Routes:
    """The configured models, in the operator's order. Immutable; shared by all requests."""

    def __init__(self, models: Sequence[ModelArgs], pool: PoolArgs | None = None) -> None:
        self._models = tuple(models)
        self._pool = pool

    def choose(self, task: Task | Wanted) -> Route:
        """The deployment that runs this task.

        An id that is configured means what is configured under it and nothing else; the pool takes
        other ids, in whatever dtype and quantization they are asked for.

        Raises:
            ModelInvalid: no model with this id.
            TaskArgsInvalid: the id is configured, but in no such dtype or quantization.
        """
        same_id = [model for model in self._models if model.id == task.model]
        if same_id:
            return Route(self._configured(task, same_id).deployment)
        if self._pool is not None and self._pool.allows(task.model):
            return Route(POOL, f"{task.model} {task.dtype} {task.quantize_bits}")
        raise ModelInvalid(self._unknown(task), param="model")

    def _unknown(self, task: Task | Wanted) -> str:
        served = ", ".join(dict.fromkeys(model.id for model in self._models))
        if self._pool is None:
            return f"model {task.model!r} is not served here; served: {served}"
        return (
            f"model {task.model!r} is not served here; served: {served or 'none by name'}; "
            f"and on demand, if the id matches: {', '.join(self._pool.allow)}"
        )

    @staticmethod
    def _configured(task: Task | Wanted, same_id: Sequence[ModelArgs]) -> ModelArgs:
        """The configured model with the task's quantization and dtype.

        The task's ``dtype: "auto"`` takes the operator's first choice. A task that names a dtype
        may also go to a model that is configured with ``dtype: auto``; what that came to is known
        only where the checkpoint is loaded, so the replica checks it.

        Raises:
            TaskArgsInvalid: there is none.
        """
        same_bits = [model for model in same_id if model.quantize_bits == task.quantize_bits]
        if not same_bits:
            raise TaskArgsInvalid(
                f"{task.model} is not served with quantize_bits {dumps(task.quantize_bits)}; "
                f"served: {_combinations(same_id)}",
                param="quantize_bits",
            )
        if task.dtype == "auto":
            return same_bits[0]
        for wanted in (task.dtype, "auto"):
            for model in same_bits:
                if model.dtype == wanted:
                    return model
        raise TaskArgsInvalid(
            f"{task.model} is not served with dtype {task.dtype!r} and quantize_bits "
            f"{dumps(task.quantize_bits)}; served: {_combinations(same_id)}",
            param="dtype",
        )


def _combinations(models: Sequence[ModelArgs]) -> str:
    return "; ".join(
        f"dtype {model.dtype!r} with quantize_bits {dumps(model.quantize_bits)}" for model in models
    )
