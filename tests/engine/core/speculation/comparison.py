"""What comes of a task, and the first place where two results differ."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from engine import Engine
from schema import Task, TaskError, TaskResponse
from schema.answers.response import collect

Known = Sequence[Sequence[int]]
Outcome = dict[str, Any]


async def outcome(
    engine: Engine, task: Task, log_id: str = "-", *, known: Known = (), whole: bool = False
) -> Outcome:
    """The response of a task, or its error, which is part of what it gives.

    Args:
        engine: runs it.
        task: the task.
        log_id: what its request is called.
        known: what its answers are said to begin with.
        whole: take it as one chunk; else as many as come.
    """
    try:
        handle = await engine.submit(task, log_id=log_id, known=known)
        chunks = []
        try:
            while not handle.done:
                chunk = await handle.next(hold_s=math.inf if whole else 0.0)
                if chunk is not None:
                    chunks.append(chunk)
        finally:
            handle.cancel()
        return dict(collect(chunks))
    except TaskError as error:
        return {"error": type(error).__name__, "message": error.message, "param": error.param}


def token_ids(response: Outcome | TaskResponse) -> list[list[int]]:
    """The tokens of each choice, of a task that has `return_token_ids`; none of an error."""
    return [list(choice["token_ids"]) for choice in dict(response).get("choices", ())]


def with_token_ids(task: Task) -> Task:
    """The same task, whose response has the ids of its tokens."""
    return task.model_copy(update={"return_token_ids": True})


def difference(want: Any, got: Any, path: str = "response") -> str | None:
    """The first place where two JSON values differ, to the bits of their numbers; None if none.

    Tokens come before the texts and numbers that are made of them.
    """
    if isinstance(want, Mapping) and isinstance(got, Mapping):
        if want.keys() != got.keys():
            return f"{path} has {sorted(want)}, and now {sorted(got)}"
        for key in sorted(want, key=lambda name: (name != "token_ids", name)):
            if found := difference(want[key], got[key], f"{path}.{key}"):
                return found
        return None
    if isinstance(want, list) and isinstance(got, list):
        for place, (one, other) in enumerate(zip(want, got, strict=False)):
            if found := difference(one, other, f"{path}.{place}"):
                return found
        if len(want) != len(got):
            return f"{path} has {len(want)} entries, and now {len(got)}: {got[len(want) :]}"
        return None
    if isinstance(want, float) and isinstance(got, float):
        same = struct.pack("<d", want) == struct.pack("<d", got)
    else:
        same = type(want) is type(got) and want == got
    return None if same else f"{path} is {want!r}, and now {got!r}"
