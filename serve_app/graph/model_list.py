"""The list of models that ``GET /v1/models`` returns, which OpenAI's clients read too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from schema.model_variant import ModelVariant
from serve_app.config.app_args import POOL, AppArgs

OWNER = "gpt-task-serve"

Statuses = Mapping[str, Sequence[dict[str, Any]]]
"""What the replicas of each deployment report: see ``status`` of the replica classes."""


def listing(
    args: AppArgs, statuses: Statuses, reasons: Mapping[str, str], created: int
) -> list[dict[str, Any]]:
    """An entry for each configured model and its adapters, and for each that is loaded on demand.

    ``id``, ``object``, ``created`` (Unix time at which the ingress started) and ``owned_by`` are
    OpenAI's; OpenAI's clients ignore the rest. ``variants`` has the model's variants: dtype,
    quantization, where and on how many replicas each runs. Of those, ``replicas`` has the card
    (`model_info`) of each replica that runs. ``problem`` says why others do not run; it is taken
    from ``reasons`` (`serve_app.graph.unavailable_reason`), by deployment.

    The entry of an adapter has its model's id as ``parent``, and in ``replicas`` what the card says
    of the adapter.
    """
    models: dict[str, dict[str, Any]] = {}
    for variant, described in _variants(args, statuses, reasons):
        entry = {
            "id": variant.id,
            "object": "model",
            "created": created,
            "owned_by": OWNER,
            "variants": [],
        }
        if variant.adapter is not None:
            entry["parent"] = variant.base.id
        models.setdefault(variant.id, entry)["variants"].append(described)
    return list(models.values())


def _variants(
    args: AppArgs, statuses: Statuses, reasons: Mapping[str, str]
) -> Iterator[tuple[ModelVariant, dict[str, Any]]]:
    """Each variant and what the list says of it."""
    for model in args.models:
        replicas = statuses[model.deployment]
        described = _described(
            model.variant,
            deployment=model.deployment,
            limits=(model.min_replicas, model.max_replicas),
            replicas=replicas,
            problem=reasons.get(model.deployment),
        )
        yield model.variant, described
        for adapter in model.adapters:
            of_adapter = [_of_adapter(replica, adapter) for replica in replicas]
            yield (
                model.variant.with_adapter(adapter),
                described | {"replicas": of_adapter},
            )
    if args.pool is None:
        return
    loaded: dict[ModelVariant, list[dict[str, Any]]] = {}
    for replica in statuses[POOL]:
        for found in replica["models"]:
            loaded.setdefault(ModelVariant.of(found), []).append(found)
    for variant, replicas in loaded.items():
        yield (
            variant,
            _described(
                variant,
                deployment=POOL,
                limits=(0, args.pool.max_replicas),
                replicas=replicas,
                problem=reasons.get(POOL),
            ),
        )


def _of_adapter(replica: dict[str, Any], adapter: str) -> dict[str, Any]:
    """What a replica reports, with the card of an adapter in the place of what is the model's."""
    card = replica.get("card", {}).get("adapters", {}).get(adapter)
    if card is None:  # nothing is known yet, or a replica of before the adapter was listed
        return {name: value for name, value in replica.items() if name != "card"}
    return {"replica": replica["replica"], "card": card}


def _described(
    variant: ModelVariant,
    *,
    deployment: str,
    limits: tuple[int, int],
    replicas: Sequence[dict[str, Any]],
    problem: str | None,
) -> dict[str, Any]:
    return {
        "dtype": variant.dtype,
        "quantize_bits": variant.quantize_bits,
        "deployment": deployment,
        "min_replicas": limits[0],
        "max_replicas": limits[1],
        "replicas": list(replicas),
        "problem": problem,
    }
