"""The tools that a request offers to the model, and where they stand in the request.

Programs offer tools of their own kinds beside functions: those that the servers of an API run, and
those whose form only its models know. Nobody here could run them, so the model does not get them.
So the tools of a task are not numbered as those of the request are.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_IN_TOOL = re.compile(r"\btools\.(\d+)(?:\.function)?\b")


@dataclass(frozen=True)
class OfferedTool:
    """A tool that the model gets.

    Attributes:
        value: the tool as a task has it.
        path: to it in the request.
        name: of the function, as the client knows it.
        namespace: the group of functions that it belongs to.
    """

    value: dict[str, Any]
    path: str
    name: str
    namespace: str | None = None


def in_request(text: str, offered: Sequence[OfferedTool]) -> str:
    """A text in which paths lead to the tools of a request instead of those of its task."""

    def place(found: re.Match[str]) -> str:
        number = int(found[1])
        return offered[number].path if number < len(offered) else found[0]

    return _IN_TOOL.sub(place, text)


def function_tool(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A function as a task has it: as chat completions write it, without what is null."""
    function = {name: value for name, value in fields.items() if value is not None}
    return {"type": "function", "function": function}
