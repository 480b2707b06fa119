"""Which of the configured models runs a task."""

from __future__ import annotations

from collections.abc import Sequence

from schema.errors import ModelInvalid, TaskArgsInvalid
from schema.task import Task
from serve_app.config import ModelArgs


class Routes:
    """The configured models, in the operator's order. Immutable; shared by all requests."""

    def __init__(self, models: Sequence[ModelArgs]) -> None:
        self._models = tuple(models)

    def choose(self, task: Task) -> ModelArgs:
        """The model that runs this task: same id, same quantization, same dtype.

        The task's ``dtype: "auto"`` takes the operator's first choice. A task that names a dtype
        may also go to a model that is configured with ``dtype: auto``; what that came to is known
        only where the checkpoint is loaded, so the replica checks it.

        Raises:
            ModelInvalid: no model with this id.
            TaskArgsInvalid: the id is served, but in no such dtype or quantization.
        """
        same_id = [model for model in self._models if model.id == task.model]
        if not same_id:
            served = ", ".join(dict.fromkeys(model.id for model in self._models))
            raise ModelInvalid(
                f"model {task.model!r} is not served here; served: {served}", param="model"
            )
        same_bits = [model for model in same_id if model.quantize_bits == task.quantize_bits]
        if not same_bits:
            raise TaskArgsInvalid(
                f"{task.model} is not served with quantize_bits {_json(task.quantize_bits)}; "
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
            f"{_json(task.quantize_bits)}; served: {_combinations(same_id)}",
            param="dtype",
        )


def _json(bits: int | None) -> str:
    return "null" if bits is None else str(bits)


def _combinations(models: Sequence[ModelArgs]) -> str:
    return "; ".join(
        f"dtype {model.dtype!r} with quantize_bits {_json(model.quantize_bits)}" for model in models
    )
