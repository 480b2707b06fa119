"""Images at ``file://`` addresses: only plain files below the directories that are allowed."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from schema.errors import TaskArgsInvalid
from serve_app.replicas.images.fetch import Budget, refuse_odd_characters

_HOSTS = ("", "localhost")
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_NOT_HERE = (
    "is not one that this server may read: there is no such file, it is not a plain file, or it "
    "lies outside the directories that are allowed by configuration"
)


def path_of(url: str) -> PurePosixPath:
    """The path that an address names. The file system is not used.

    Raises:
        TaskArgsInvalid: it does not have the form ``file:///path``.
    """
    refuse_odd_characters(url)
    after_scheme = url.partition(":")[2]
    if not after_scheme.startswith("//"):
        raise TaskArgsInvalid('must have the form "file:///path/to/image.png"')
    host, slash, rest = after_scheme[2:].partition("/")
    if host.lower() not in _HOSTS or not slash:
        raise TaskArgsInvalid('must have the form "file:///path/to/image.png", without a host')
    if "?" in rest or "#" in rest:
        raise TaskArgsInvalid("must not have a query or a fragment; write ? as %3F and # as %23")
    try:
        path = PurePosixPath("/", unquote(rest, errors="strict").lstrip("/"))
    except UnicodeDecodeError:
        raise TaskArgsInvalid("must be UTF-8 where it is percent-encoded") from None
    if "\0" in str(path) or ".." in path.parts:
        raise TaskArgsInvalid("must not have .. or NUL in its path")
    return path


def read_image(url: str, roots: Sequence[str], budget: Budget) -> bytes:
    """The file at ``url``, which lies below one of ``roots``. Blocking.

    All faults of a path get the same answer, so that clients do not learn which other files exist.
    A path that is outside the roots by its name is not looked up at all.

    Raises:
        TaskArgsInvalid: it is refused, does not exist or is too large.
    """
    path = path_of(url)
    if not any(path.is_relative_to(root) for root in roots):
        raise TaskArgsInvalid(_NOT_HERE)
    try:
        resolved = Path(path).resolve(strict=True)
        tops = [Path(root).resolve() for root in roots]
        top = next((top for top in tops if resolved.is_relative_to(top)), None)
        if top is None:
            raise TaskArgsInvalid(_NOT_HERE)
        file = _open_below(top, resolved.relative_to(top).parts)
        try:
            return _read(file, budget)
        finally:
            os.close(file)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise TaskArgsInvalid(_NOT_HERE) from error


def _open_below(top: Path, parts: Sequence[str]) -> int:
    """Open a file, directory by directory, without following symbolic links.

    The path was resolved, so a link that is found now was put there later.
    """
    folder = os.open(top, _FLAGS | os.O_DIRECTORY)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FLAGS | os.O_DIRECTORY, dir_fd=folder)
            os.close(folder)
            folder = inner
        # Non-blocking: opening a FIFO would wait for a writer.
        return os.open(parts[-1] if parts else ".", _FLAGS | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)


def _read(file: int, budget: Budget) -> bytes:
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode):
        raise TaskArgsInvalid(_NOT_HERE)
    budget.take(status.st_size)
    with os.fdopen(file, "rb", closefd=False) as opened:
        return opened.read(status.st_size)
