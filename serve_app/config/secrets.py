"""Secrets of the operator: read from a file or an environment variable, never shown."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from serve_app.config.app_args import REPOSITORY


def read(file: str | None, variable: str | None) -> str:
    """The text of the one of the two that is given. Raises as `read_file` and `read_variable`."""
    if variable is not None:
        return read_variable(variable)
    assert file is not None
    return read_file(file)


def read_file(file: str) -> str:
    """The text of a file that the configuration names.

    Raises:
        ValueError: it cannot be read, or is not UTF-8.
    """
    path = _path(file)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None


def read_variable(name: str) -> str:
    """The value of an environment variable.

    Raises:
        ValueError: it is not set.
    """
    value = os.environ.get(name)
    if value is None:
        raise ValueError(f"the environment variable {name} is not set")
    return value


def readable_by_others(file: str | None, what: str) -> str | None:
    """A warning if other users of the machine can read a file of secrets; else None.

    Args:
        file: its name; None if the secret is not in a file.
        what: what is in it.
    """
    if file is None:
        return None
    path = _path(file)
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        return f"other users of this machine can read the {what} in {path}: chmod 600 {path}"
    return None


def _path(file: str) -> Path:
    return REPOSITORY / Path(file).expanduser()
