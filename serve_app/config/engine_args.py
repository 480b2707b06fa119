"""``engine:`` of a model, or of the pool, in the YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import model_validator

from engine.config import EngineOptions

_BESIDE = "is set beside engine, by {}, and not in it"


class EngineArgs(EngineOptions):
    """Any of the engine's options, except those that the graph sets, which are refused here.

    A key without a value has the engine's default. ``num_devices`` is the number of processes with
    ``device: cpu``, to try a split model without GPUs.
    """

    elsewhere: ClassVar[Mapping[str, str]] = {
        "model": _BESIDE.format("id and source"),
        "model_id": _BESIDE.format("id"),
        "from_hub": _BESIDE.format("source"),
        "revision": _BESIDE.format("revision"),
        "dtype": _BESIDE.format("dtype"),
        "quantize_bits": _BESIDE.format("quantize_bits"),
        "device": _BESIDE.format("device"),
        "split": _BESIDE.format("split"),
        "adapters": _BESIDE.format("adapters"),
    }

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_has_no_value(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            key: given
            for key, given in value.items()
            if given is not None or key not in cls.model_fields
        }

    def given(self) -> dict[str, Any]:
        """What the operator has set: keyword arguments of an `EngineConfig`."""
        return {name: getattr(self, name) for name in self.model_fields_set}
