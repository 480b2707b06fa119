"""What the parts of the graph cost: the form of ``measured.json``.

All times are seconds of CPU time, because other work on the machine does not change those much.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

Mode = Literal["default", "tuned"]
MODES: tuple[Mode, ...] = ("default", "tuned")
MEASURED = Path(__file__).with_name("measured.json")

Curve = Sequence[tuple[float, float]]
"""A cost at numbers of something, in rising order; in between it is a straight line."""


@dataclass(frozen=True)
class Stage:
    """CPU seconds that one part spends.

    Attributes:
        task: for a streamed task, beside its chunks.
        chunk: for each chunk of a streamed answer.
        whole: for a task that is not streamed, in all.
        picture: beside that, for a task with one small picture; more of the body is
            `PictureCosts.parse`.
    """

    task: float
    chunk: float
    whole: float
    picture: float


@dataclass(frozen=True)
class ModeCosts:
    """The parts that a task passes, in one mode of Ray Serve.

    Attributes:
        replica: of the replica's process, what is not the engine's thread.
        health: of the ingress, for each replica that it asks at ``GET /health``.
    """

    proxy: Stage
    ingress: Stage
    replica: Stage
    health: float


@dataclass(frozen=True)
class ControllerCosts:
    """The controller's CPU seconds.

    Attributes:
        base: a second, with no replicas.
        per_replica: a second, for each replica whose number does not change.
        per_scaled_replica: a second, for each replica of a deployment that scales, in all:
            health check, its reports, its share of the decisions.
        decision: one decision about a deployment, over its number of replicas, with one handle.
        decision_handle: what each further handle adds to that, over the number of replicas.
        replica_report: taking one replica's report.
        handle_report: unpacking one handle's report, over the number of replicas that it covers;
            the message itself costs as much as a replica's.
        handle_made: making it, which is the ingress's work.
        broadcast: telling one listener of a change, over the number of replicas.
        listen: what hearing of it costs the ingress, over the number of replicas.
    """

    base: float
    per_replica: float
    per_scaled_replica: float
    decision: Curve
    decision_handle: Curve
    replica_report: float
    handle_report: Curve
    handle_made: Curve
    broadcast: Curve
    listen: Curve


@dataclass(frozen=True)
class RouterCosts:
    """The ingress's CPU seconds for choosing a replica, over the number of replicas.

    Attributes:
        plain: a task without a beginning to go by.
        beginning: a task with one.
        probe: for each message that asks a replica for the length of its queue.
        probed: for the replica that is asked.
    """

    plain: Curve
    beginning: Curve
    probe: float
    probed: float


@dataclass(frozen=True)
class PictureCosts:
    """A picture of a kind: CPU seconds (``parse`` is the ingress's), bytes of request, tensors."""

    prepare: float
    parse: float
    body_bytes: int
    tensor_bytes: int
    put: float
    get: float


@dataclass(frozen=True)
class EngineCosts:
    """One replica's engine: a task costs ``task`` s, a step of n rows ``step + n * row`` s."""

    task: float
    step: float
    row: float


@dataclass(frozen=True)
class Measured:
    """Everything that was measured. ``about`` says where, when and with which versions.

    ``points`` are loads of the real server that the simulation is compared with.
    """

    about: dict[str, Any]
    modes: dict[Mode, ModeCosts]
    controller: ControllerCosts
    router: RouterCosts
    pictures: dict[str, PictureCosts]
    engine: EngineCosts
    points: list[dict[str, Any]]
    raw: dict[str, Any]

    @classmethod
    def load(cls, file: Path = MEASURED) -> Self:
        """Read a file that `python -m benchmarks.capacity measure` has written."""
        found = json.loads(file.read_text(encoding="utf-8"))
        modes = {
            name: ModeCosts(
                **{part: Stage(**costs[part]) for part in ("proxy", "ingress", "replica")},
                health=costs["health"],
            )
            for name, costs in found["modes"].items()
        }
        return cls(
            about=found["about"],
            modes=modes,
            controller=ControllerCosts(**found["controller"]),
            router=RouterCosts(**found["router"]),
            pictures={name: PictureCosts(**one) for name, one in found["pictures"].items()},
            engine=EngineCosts(**found["engine"]),
            points=found["points"],
            raw=found["raw"],
        )

    def as_json(self) -> dict[str, Any]:
        """As it is written to a file."""
        return asdict(self)


def at(curve: Curve, number: float) -> float:
    """The cost at a number; beyond the measured ones the last piece goes straight on."""
    numbers = [point[0] for point in curve]
    right = min(max(bisect_left(numbers, number), 1), len(curve) - 1)
    (x0, y0), (x1, y1) = curve[right - 1], curve[right]
    return y0 + (y1 - y0) * (number - x0) / (x1 - x0)
