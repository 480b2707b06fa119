"""Keeps refused tasks out of the log: Ray Serve would log them as failures of a replica."""

from __future__ import annotations

import logging

from schema.errors import Overloaded, TaskArgsInvalid

REFUSALS = (TaskArgsInvalid, Overloaded)
"""Errors of a task that is not valid, or for which there is no room. They are not failures."""


class _NoRefusals(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], REFUSALS))


def leave_out_refusals() -> None:
    """Log no traceback of a refused task in this process; Ray's line of its call stays.

    Ray Serve writes a traceback for every exception of a replica's method, so that any client
    could fill the log.
    """
    logging.getLogger("ray.serve").addFilter(_NoRefusals())
