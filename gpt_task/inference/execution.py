"""What the last `run_task` of this process ran on, as gpt-task reports it.

It belongs to the process and not to a task, so it says little where threads run tasks in parallel.
"""

from dataclasses import dataclass


@dataclass
class _Execution:
    gpu_count: int | None = None
    dtype: str | None = None


_last = _Execution()


def begin(gpu_count: int) -> None:
    """A task starts on ``gpu_count`` GPUs; its dtype is known when the model is loaded."""
    _last.gpu_count, _last.dtype = gpu_count, None


def loaded(dtype: str) -> None:
    """The task's model is loaded, in ``dtype``."""
    _last.dtype = dtype


def get_executed_gpu_count() -> int | None:
    """GPUs that the last task used: 1, or 0 on CPU. None before the first task."""
    return _last.gpu_count


def get_execution_dtype() -> str | None:
    """The dtype of the last task's model, such as "bfloat16". None where none was loaded."""
    return _last.dtype
