"""How many replicas a deployment has: part of what stands under ``models`` and ``pool``."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from schema.validation.strict import NonNegativeFloat, PositiveInt, Strict


class ScalingArgs(Strict):
    """How many replicas a deployment may have, when that changes, and how many tasks each gets.

    Attributes:
        min_replicas: 0 starts the first replica with the first task.
        target_ongoing_requests: tasks per replica above which another replica is started. Another
            one is also started when little of the KV caches is free (`autoscaling_policy`).
        max_ongoing_requests: tasks that Ray sends to one replica. More than the engine can hold, so
            that the engine's bounded queue decides when to refuse.
        scale_up_after_s: how long the load has to be high before a replica is started. The first
            one is started at once.
        scale_down_after_s: how long the load has to be low before a replica is stopped. Loading a
            model on a GPU takes minutes, so this is long.
        scale_to_zero_after_s: the same for the last replica; None is ``scale_down_after_s``.
    """

    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveInt = 16
    max_ongoing_requests: PositiveInt = 4096
    scale_up_after_s: NonNegativeFloat = 5.0
    scale_down_after_s: NonNegativeFloat = 300.0
    scale_to_zero_after_s: NonNegativeFloat | None = None

    @model_validator(mode="after")
    def _check_scaling(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) is less than "
                f"min_replicas ({self.min_replicas})"
            )
        if self.scale_to_zero_after_s is not None and self.min_replicas > 0:
            raise ValueError(
                "scale_to_zero_after_s has no meaning with a replica that is always on: "
                "set min_replicas: 0 or leave it out"
            )
        return self
