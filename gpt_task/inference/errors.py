"""gpt-task's errors: those of `schema.errors` that are also what gpt-task's callers catch.

All but the last are `ValueError`s. Unlike gpt-task's, their text says what is wrong and `param`
names the field.
"""

# ruff: noqa: N818 - the names are gpt-task's.

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from pydantic import ValidationError

from gpt_task.models import GPTTaskArgs
from schema import errors as contract
from schema.validation.problems import explain

__all__ = [
    "ModelDownloadError",
    "ModelInvalid",
    "ModelNotDownloaded",
    "OutOfMemory",
    "TaskArgsInvalid",
    "TaskExecutionError",
    "translated_errors",
]


class TaskArgsInvalid(contract.TaskArgsInvalid, ValueError):
    """The task is not valid."""


class ModelInvalid(contract.ModelInvalid, ValueError):
    """There is no such model, or its kind is not supported."""


class ModelDownloadError(contract.ModelDownloadError, ValueError):
    """The hub did not deliver the model."""


class ModelNotDownloaded(contract.ModelNotDownloaded, ValueError):
    """``local_files_only`` is set, and the model's files are not here."""


class TaskExecutionError(contract.TaskExecutionError, ValueError):
    """Anything else, an exception of the stream callback or of the model cache included."""


class OutOfMemory(contract.OutOfMemory, torch.OutOfMemoryError):
    """The model or the task does not fit. gpt-task lets torch's own error through, so it is one."""


_NAMES: dict[type[contract.TaskError], type[contract.TaskError]] = {
    contract.TaskArgsInvalid: TaskArgsInvalid,
    contract.ModelInvalid: ModelInvalid,
    contract.ModelDownloadError: ModelDownloadError,
    contract.ModelNotDownloaded: ModelNotDownloaded,
}
_TRANSLATED: tuple[type[Exception], ...] = (
    *_NAMES.values(),
    TaskExecutionError,
    torch.OutOfMemoryError,
)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Turn any exception of the body into one of the errors above, with the original as cause."""
    try:
        yield
    except _TRANSLATED:
        raise  # a callback may run a task, too
    except contract.OutOfMemory as error:
        # gpt-task's callers look for these words in the text.
        raise OutOfMemory(f"out of memory: {error.message}", error.param) from error
    except contract.TaskError as error:
        names = (name for kind, name in _NAMES.items() if isinstance(error, kind))
        name = next(names, TaskExecutionError)
        raise name(error.message, error.param, error.retry_after_s) from error
    except ValidationError as error:
        explained = explain(error, GPTTaskArgs)
        raise TaskArgsInvalid(explained.message, explained.param) from error
    except Exception as error:  # raised by a callback or a cache of the caller
        raise TaskExecutionError(f"{type(error).__name__}: {error}") from error
