"""`run_task`, what it reports about the last task, and `verify_task`."""

from gpt_task.inference.execution import get_executed_gpu_count, get_execution_dtype
from gpt_task.inference.inference import run_task
from gpt_task.inference.verification import verify_task

__all__ = ["get_executed_gpu_count", "get_execution_dtype", "run_task", "verify_task"]
