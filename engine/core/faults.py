"""Ends the requests that a fault belongs to, and only those, with an error that says why."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from engine.requests.request import Request, ScheduledTokens, log_ids
from schema.errors import EngineStopped, OutOfMemory, TaskError, TaskExecutionError

logger = logging.getLogger(__name__)


@contextmanager
def fail_on_error(requests: Sequence[Request]) -> Iterator[None]:
    """End these requests, and no others, when the body raises."""
    try:
        yield
    except TaskError as error:
        _fail(requests, error)
    except torch.OutOfMemoryError as error:
        logger.warning("out of memory, tasks %s: %s", log_ids(requests), error)
        _fail(requests, OutOfMemory(f"the device ran out of memory: {error}"))
    except torch.AcceleratorError as error:
        # The CUDA context is lost, and with it the process: let the replica be replaced.
        _fail(requests, EngineStopped(f"the device failed: {error}"))
        raise
    except Exception as error:
        logger.exception("tasks failed: %s", log_ids(requests))
        _fail(requests, TaskExecutionError(f"the task failed: {error!r}"))


def parts_of(batch: Sequence[ScheduledTokens]) -> list[list[ScheduledTokens]]:
    """What can be run, and fail, by itself: a chunk of a prompt, or a request's decode step."""
    parts: list[list[ScheduledTokens]] = []
    for tokens in batch:
        if tokens.of_prompt or not parts or parts[-1][0].owner is not tokens.owner:
            parts.append([tokens])
        else:
            parts[-1].append(tokens)
    return parts


def _fail(requests: Sequence[Request], error: TaskError) -> None:
    for request in requests:
        request.fail(error)
