"""``gpt-task-serve COMMAND``, which is also ``python -m gpt_task_serve COMMAND``."""

from __future__ import annotations

import gc
import importlib
import sys
from typing import Any

COMMANDS = {
    "serve": ("gpt_task_serve.serve", "serve a configuration until Ctrl-C"),
    "check": ("serve_app.check", "is a configuration right, and what will run?"),
    "doctor": ("cluster.doctor", "can this machine run it?"),
    "plan": ("cluster.plan", "what fits on which GPUs?"),
    "models": ("serve_app.models", "what a running server serves, and how"),
    "status": ("serve_app.status", "what a running server does now"),
}
"""The module of each command, whose `main` takes the arguments and returns the exit status."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as shells have it."""

USAGE = (
    "usage: gpt-task-serve COMMAND [ARGUMENTS]\n\n{}\n\ngpt-task-serve COMMAND --help says more."
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command that the first argument names; returns the exit status."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("-h", "--help"):
        print(
            USAGE.format("\n".join(f"  {each:<8} {said}" for each, (_, said) in COMMANDS.items()))
        )
        return 0
    if name not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(f"gpt-task-serve: no command {name!r}; there are {known}", file=sys.stderr)
        return 2
    try:
        module = _imported(COMMANDS[name][0])
        status: int = module.main(rest, prog=f"gpt-task-serve {name}")
    except KeyboardInterrupt:
        return INTERRUPTED
    return status


def _imported(module: str) -> Any:
    """A command's module, only the one that is asked for: some import torch, which takes seconds.

    The garbage collector is off meanwhile: it would look through all that has been imported again
    and again, and find nothing, for a fifth of the time.
    """
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
