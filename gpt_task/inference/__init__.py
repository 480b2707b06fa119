"""`run_task`, and what it reports about the last task."""

from gpt_task.inference.execution import get_executed_gpu_count, get_execution_dtype
from gpt_task.inference.inference import run_task

__all__ = ["get_executed_gpu_count", "get_execution_dtype", "run_task"]
