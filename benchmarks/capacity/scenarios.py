"""What is simulated: engines, workloads, and how many processes of each part there are.

The engines of GPUs are no measurements: they are floors from the memory bandwidth, as
`cluster.plan` computes them. A real engine is slower, so the graph has less to do than here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.capacity.costs import Measured
from benchmarks.harness.models import GEOMETRIES
from cluster.planning.gpus import GPU_TYPES
from cluster.planning.needs import Need
from cluster.planning.packing import tokens_per_s

REPLICAS_PER_NODE = 8
NETWORK_BYTES_PER_S = 1.25e9  # 10 Gbit/s: an assumption
STORE_BYTES = 60e9  # the object store of a node with 200 GB of memory: Ray takes 30 %
_CONTEXT = 512
_PARAMETERS_8B = 8.03e9


@dataclass(frozen=True)
class Engine:
    """One replica's engine.

    Attributes:
        name: of the scenario.
        what: in words, and whether it was measured.
        prefill_s: how long a prompt holds up the others.
        step_s: from the number of rows to the seconds of a decode step.
        max_sequences: rows at once.
        max_waiting: tasks that may wait; the next is refused.
    """

    name: str
    what: str
    prefill_s: float
    step_s: Callable[[int], float]
    max_sequences: int = 32
    max_waiting: int = 256

    def tasks_per_s(self, tokens: int) -> float:
        """The most tasks of so many tokens that it can end in a second."""
        # A row's first token comes with the prompt.
        rows = self.max_sequences
        return rows / (rows * self.prefill_s + (tokens - 1) * self.step_s(rows))


@dataclass(frozen=True)
class Workload:
    """What a task is like.

    Attributes:
        tokens: of an answer.
        tokens_per_chunk: how many travel in one message; None is an answer that is not streamed.
        picture: the kind of picture in `Measured.pictures` that each task has.
        beginning: tasks have beginnings to be routed by.
    """

    name: str
    tokens: int
    tokens_per_chunk: int | None = 1
    picture: str | None = None
    beginning: bool = False

    @property
    def chunks(self) -> int:
        """Messages of an answer."""
        return (
            1 if self.tokens_per_chunk is None else math.ceil(self.tokens / self.tokens_per_chunk)
        )


@dataclass(frozen=True)
class Layout:
    """How many processes there are.

    Attributes:
        scaling: whether the number of model replicas may change (``min_replicas`` is less than
            ``max_replicas``), which has replicas and ingresses report to the controller.
    """

    replicas: int
    ingresses: int = 1
    proxies: int = 1
    preprocessors: int = 1
    scaling: bool = True

    @property
    def nodes(self) -> int:
        """Machines that the replicas run on."""
        return math.ceil(self.replicas / REPLICAS_PER_NODE)


def engines(measured: Measured) -> dict[str, Engine]:
    """The engines by the names of their scenarios."""
    demo = measured.engine
    return {
        "demo": Engine(
            "demo",
            "the demo model on one CPU core, measured here",
            demo.task,
            lambda rows: demo.step + demo.row * rows,
        ),
        "8b-bf16": _floor("8b-bf16", "8B in bfloat16", 2.0),
        "8b-int4": _floor("8b-int4", "8B in INT4", 0.5 + 4 / 64),
    }


def _floor(name: str, what: str, bytes_per_parameter: float) -> Engine:
    """A model of Llama-8B's geometry on a card with 24 GB, as fast as its memory allows."""
    (gpu,) = (one for one in GPU_TYPES if one.name == "RTX4090")
    weights = int(_PARAMETERS_8B * bytes_per_parameter)
    need = Need(
        name,
        "cuda",
        1.0,
        None,
        1,
        1,
        weights=weights,
        decode_weights=weights,
        kv_per_token=GEOMETRIES["llama-8b"].kv_elements_per_token * 2,
    )

    def step_s(rows: int) -> float:
        speed = tokens_per_s(need, gpu, rows, _CONTEXT)
        assert speed is not None
        return rows / speed

    what = f"{what} on an {gpu.name} (24 GB): a floor from its bandwidth, not measured"
    # A chunk of a prompt reads the weights once, as a step of one row does.
    return Engine(name, what, step_s(1), step_s)
