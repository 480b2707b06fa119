"""What a peer of `benchmarks.engine` is: what it is given, and what it gives back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.harness.client import Job


@dataclass(frozen=True)
class PeerSettings:
    """What all peers are given.

    Attributes:
        max_tasks: the most tasks of any run; every peer may work on all of them at once.
        max_prompt, max_answer: the longest prompt and answer of any run, in tokens.
        engine_options: further ones of this repository's engine.
    """

    model_dir: str
    dtype: str
    device: str
    threads: int
    max_tasks: int
    max_prompt: int
    max_answer: int
    cb_batch_tokens: int | None
    engine_options: Mapping[str, Any]

    @property
    def torch_device(self) -> torch.device:
        """The device that "auto" stands for, or the named one."""
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(automatic if self.device == "auto" else self.device)

    @property
    def on_cuda(self) -> bool:
        """Whether that is a GPU."""
        return self.torch_device.type == "cuda"

    def kv_blocks(self, tokens_per_block: int) -> int:
        """Blocks of KV cache that hold the worst case of every run."""
        tokens = self.max_prompt + self.max_answer
        return self.max_tasks * -(-tokens // tokens_per_block)


@dataclass(frozen=True)
class TaskResult:
    """One answer. Times are seconds since the whole batch was submitted."""

    tokens: int
    first_s: float
    last_s: float
    text: str


class Peer(ABC):
    """Holds a model and runs batches of tasks."""

    @abstractmethod
    def run(self, tasks: Sequence[Job]) -> list[TaskResult]:
        """Run tasks that are all submitted at once; results in their order."""

    @abstractmethod
    def description(self) -> dict[str, Any]:
        """The settings that it runs with. JSON-able."""

    def close(self) -> None:  # noqa: B027  (most have nothing to close)
        """Stop what it has started."""
