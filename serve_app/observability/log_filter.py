"""What Ray Serve logs as a failure of a replica and is none: tasks that are refused."""

from __future__ import annotations

import logging

from schema.errors import Overloaded, TaskArgsInvalid

REFUSALS = (TaskArgsInvalid, Overloaded)
"""How a task ends for what it asks, or for want of room. Nothing has gone wrong then."""


class _NoRefusals(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and isinstance(record.exc_info[1], REFUSALS))


def leave_out_refusals() -> None:
    """Log no traceback of a refused task in this process; Ray's line of its call stays.

    Ray Serve writes one for whatever leaves a method of a replica, so that anybody could fill the
    log with them.
    """
    logging.getLogger("ray.serve").addFilter(_NoRefusals())
