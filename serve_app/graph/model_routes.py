"""Which deployment runs a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from json import dumps

from pydantic_core import from_json

from schema.errors import ModelInvalid, TaskArgsInvalid
from schema.json_values import MAX_BRACKETS
from schema.model_variant import ModelVariant, unknown_adapter
from schema.task import Task
from serve_app.config.app_args import POOL, ModelArgs, PoolArgs


def peek_variant(body: bytes) -> ModelVariant | None:
    """The variant of the model that a body asks for: a task's, a client's, or that of a ``task``.

    It reads no other field. None if the variant cannot be read; validation will then say why.
    """
    if body.count(b"[") + body.count(b"{") > MAX_BRACKETS:
        return None
    try:
        # A hundred times as fast for an image as the parser that accounts for every byte.
        fields = from_json(body)
    except ValueError:
        return None
    if isinstance(fields, dict) and isinstance(fields.get("task"), dict):
        fields = fields["task"]  # of a verification
    match fields:
        case {"model": str(model)}:
            dtype, bits = fields.get("dtype"), fields.get("quantize_bits")
        case _:
            return None
    if isinstance(dtype, str | None) and isinstance(bits, int | None):
        return ModelVariant(model, dtype or "auto", bits)
    return None


@dataclass(frozen=True)
class Route:
    """Where a task goes.

    Attributes:
        deployment: runs it.
        session: tasks of the same session go to the same replica, where their model is loaded; None
            if all replicas have the same model.
    """

    deployment: str
    session: str | None = None


class Routes:
    """The configured models, in the operator's order. Immutable; shared by all requests."""

    def __init__(self, models: Sequence[ModelArgs], pool: PoolArgs | None = None) -> None:
        self._models = tuple(models)
        self._pool = pool

    def choose(self, wanted: Task | ModelVariant) -> Route:
        """The deployment that runs a task, or a task for this variant.

        An id that is configured always means what is configured; the pool takes other ids, in any
        dtype and quantization. Only configured models have adapters.

        Raises:
            ModelInvalid: there is no model with this id, or it does not have this adapter.
            TaskArgsInvalid: the id is configured, but not in this dtype or quantization.
        """
        variant = wanted.variant if isinstance(wanted, Task) else wanted
        base, adapter = variant.base.id, variant.adapter
        same_id = [model for model in self._models if model.id == base]
        if same_id:
            able = [m.variant for m in same_id if adapter is None or adapter in m.adapters]
            if not able:
                known = dict.fromkeys(name for model in same_id for name in model.adapters)
                raise unknown_adapter(variant, known)
            return Route(_configured(variant, able).deployment)
        if self._pool is not None and self._pool.allows(base):
            if adapter is not None:
                raise ModelInvalid(
                    f"model {base!r} is loaded on demand, and only models that the server's "
                    f"configuration lists have adapters: ask for {base!r} itself",
                    param="model",
                )
            return Route(POOL, f"{variant.id} {variant.dtype} {variant.quantize_bits}")
        raise ModelInvalid(self._unknown(variant.id), param="model")

    def _unknown(self, name: str) -> str:
        served = ", ".join(dict.fromkeys(model.id for model in self._models))
        if self._pool is None:
            return f"model {name!r} is not served here; served: {served}"
        return (
            f"model {name!r} is not served here; served: {served or 'none by name'}; "
            f"and on demand, if the id matches: {', '.join(self._pool.allow)}"
        )


def _configured(wanted: ModelVariant, same_id: Sequence[ModelVariant]) -> ModelVariant:
    """Of the configured variants of a model, the one with the wanted quantization and dtype.

    ``dtype: "auto"`` of a task takes the operator's first choice. A task that names a dtype may
    also go to a model that is configured with ``dtype: auto``; only the replica knows the dtype of
    the loaded checkpoint, so it checks it.

    Raises:
        TaskArgsInvalid: there is no such variant.
    """
    bits = dumps(wanted.quantize_bits)
    same_bits = [model for model in same_id if model.quantize_bits == wanted.quantize_bits]
    if not same_bits:
        raise TaskArgsInvalid(
            f"{wanted.id} is not served with quantize_bits {bits}; served: {_listed(same_id)}",
            param="quantize_bits",
        )
    if wanted.dtype == "auto":
        return same_bits[0]
    for dtype in (wanted.dtype, "auto"):
        for model in same_bits:
            if model.dtype == dtype:
                return model
    raise TaskArgsInvalid(
        f"{wanted.id} is not served with dtype {wanted.dtype!r} and quantize_bits {bits}; served: "
        f"{_listed(same_id)}",
        param="dtype",
    )


def _listed(variants: Sequence[ModelVariant]) -> str:
    return "; ".join(
        f"dtype {variant.dtype!r} with quantize_bits {dumps(variant.quantize_bits)}"
        for variant in variants
    )
