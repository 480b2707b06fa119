"""Processes that serving leaves behind: those below this one, and those that hold a port."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from contextlib import suppress

import psutil

_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
TERMINATING_S = 5.0


def adopt_orphans() -> None:
    """Become the parent of processes below this one whose own parent dies, so that they are found.

    Otherwise they would become children of the machine's first process.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def ray_processes() -> list[psutil.Process]:
    """Those of a Ray that this process has started without which it does not work."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if child.name() in ("raylet", "gcs_server")]


def is_alive(process: psutil.Process) -> bool:
    """Whether it runs; a process that has ended and is remembered as a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def kill_children() -> None:
    """End everything below this process at once."""
    _kill(psutil.Process().children(recursive=True))


def end_children() -> None:
    """End everything below this process; what does not obey is killed."""
    end(psutil.Process().children(recursive=True))


def end(processes: Sequence[psutil.Process]) -> None:
    """End processes; those that have not ended after some seconds are killed."""
    for process in processes:
        with suppress(psutil.Error):
            process.terminate()
    _, alive = psutil.wait_procs(processes, TERMINATING_S)
    _kill(alive)


def holders(port: int) -> list[psutil.Process]:
    """The processes that listen on a TCP port, as far as this user may see them."""
    found = []
    for process in psutil.process_iter():
        try:
            connections = process.net_connections("tcp")
        except psutil.Error:
            continue  # of another user, or gone
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in connections):
            found.append(process)
    return found


def is_orphaned_haproxy(process: psutil.Process) -> bool:
    """Whether it is a HAProxy of Ray Serve, of this user, whose manager has died.

    Ray's manager starts it as its child, so an orphan has another parent. It answers 500 for ever.
    """
    try:
        return (
            process.name() == "haproxy"
            and any("haproxy-serve" in word for word in process.cmdline())
            and process.uids().real == psutil.Process().uids().real
            and not _below_ray(process)
        )
    except psutil.Error:
        return False


def described(process: psutil.Process) -> str:
    """A process for a person: its number and its command."""
    try:
        return f"process {process.pid} ({' '.join(process.cmdline())[:200] or process.name()})"
    except psutil.Error:
        return f"process {process.pid}"


def _below_ray(process: psutil.Process) -> bool:
    parent = process.parent()
    return parent is not None and parent.name().startswith("ray::")


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, TERMINATING_S)
