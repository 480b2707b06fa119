"""The list of models that ``GET /v1/models`` returns, which OpenAI's clients read too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schema.model_variant import ModelVariant
from serve_app.config.app_args import POOL, AppArgs

OWNER = "gpt-task-serve"

Statuses = Mapping[str, Sequence[dict[str, Any]]]
"""What the replicas of each deployment report: see ``status`` of the replica classes."""


def listing(
    args: AppArgs, statuses: Statuses, reasons: Mapping[str, str], created: int
) -> list[dict[str, Any]]:
    """An entry for each configured model, and for each that is loaded on demand now.

    ``id``, ``object``, ``created`` (Unix time at which the ingress started) and ``owned_by`` are
    OpenAI's; OpenAI's clients ignore the rest. Variants of a model have entries with the same id.
    ``replicas`` has the card (`model_info`) of each replica that runs. ``problem`` says why others
    do not run; it is taken from ``reasons`` (`serve_app.graph.unavailable_reason`), by deployment.
    """
    entries = [
        _entry(
            model.variant,
            created=created,
            deployment=model.deployment,
            limits=(model.min_replicas, model.max_replicas),
            replicas=statuses[model.deployment],
            problem=reasons.get(model.deployment),
        )
        for model in args.models
    ]
    if args.pool is None:
        return entries
    loaded: dict[ModelVariant, list[dict[str, Any]]] = {}
    for replica in statuses[POOL]:
        for model in replica["models"]:
            loaded.setdefault(ModelVariant.of(model), []).append(model)
    return entries + [
        _entry(
            variant,
            created=created,
            deployment=POOL,
            limits=(0, args.pool.max_replicas),
            replicas=replicas,
            problem=reasons.get(POOL),
        )
        for variant, replicas in loaded.items()
    ]


def _entry(
    variant: ModelVariant,
    *,
    created: int,
    deployment: str,
    limits: tuple[int, int],
    replicas: Sequence[dict[str, Any]],
    problem: str | None,
) -> dict[str, Any]:
    return {
        "id": variant.id,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "dtype": variant.dtype,
        "quantize_bits": variant.quantize_bits,
        "deployment": deployment,
        "min_replicas": limits[0],
        "max_replicas": limits[1],
        "replicas": list(replicas),
        "problem": problem,
    }
