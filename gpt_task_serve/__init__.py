"""The command ``gpt-task-serve``: it serves, and has the other commands beneath it."""
