"""A plan for people: tables for the terminal, and an image."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from cluster.planning.gpus import GIB
from cluster.planning.needs import Need
from cluster.planning.packing import (
    PROCESS_BYTES,
    Packing,
    Resident,
    misplaceable,
    tokens_per_s,
    why_not,
)


def table(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width under the heads of the first line; numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [
        all(not cell or cell[0].isdigit() or cell == "?" for cell in column[1:])
        for column in zip(*lines, strict=True)
    ]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    )


def report(packing: Packing, context: int) -> str:
    """The whole plan as text: deployments, GPUs, what is missing, notes."""
    parts = [
        "Deployments, for each replica:",
        table(_deployments(packing)),
        "",
        "GPUs, as their replicas fit:" if packing.gpus else "GPUs: none",
    ]
    if packing.gpus:
        parts.append(table(_gpus(packing)))
        parts += [
            "",
            "Tokens/s that the memory bandwidth allows at most, its GPUs to itself, "
            f"{context} tokens of context each",
            "(small models stay far below: launching kernels takes longer than reading them):",
            table(_rates(packing, context)),
        ]
    parts += _section("Cannot be placed:", _missing(packing))
    parts += _section("Notes:", notes(packing))
    return "\n".join(parts)


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", title, *(f"- {line}" for line in lines)] if lines else []


def _deployments(packing: Packing) -> list[list[str]]:
    lines = [["deployment", "on", "weights GiB", "KV MiB/1k tokens", "replicas", "fit"]]
    for need in packing.needs:
        where = "CPU"
        if need.device == "cuda":
            where = f"{need.gpus:g} {need.accelerator_type or 'GPU'}"
            if need.num_gpus > 1:
                where += ", by layers" if need.split == "layers" else ", by tensors"
        lines.append(
            [
                need.deployment,
                where,
                "?" if need.weights is None else f"{need.weights / GIB:.2f}",
                f"{need.kv_per_token * 1000 / 2**20:.1f}" if need.kv_per_token else "?",
                f"{need.min_replicas}-{need.max_replicas}",
                str(packing.placed[need.deployment]) if need.device == "cuda" else "",
            ]
        )
    return lines


def _gpus(packing: Packing) -> list[list[str]]:
    lines = [["node", "GPU", "type", "GiB", "free", "replicas: weights + KV cache (tokens)"]]
    for _, same in groupby(packing.gpus, key=lambda gpu: (gpu.node, _contents(gpu.residents))):
        gpus = list(same)
        first, last = gpus[0], gpus[-1]
        lines.append(
            [
                first.node,
                str(first.index) if first is last else f"{first.index}-{last.index}",
                first.type.name,
                f"{first.type.memory_gib:.1f}",
                f"{first.free / GIB:.1f}",
                _contents(first.residents) or "nothing",
            ]
        )
    return lines


def _contents(residents: Sequence[Resident]) -> str:
    return "; ".join(
        f"{resident.need.deployment}: "
        + (
            "unknown"
            if resident.need.weights is None
            else f"{resident.weights / GIB:.1f} + {resident.kv_cache / GIB:.1f}"
            + (f" ({resident.kv_tokens})" if resident.kv_tokens else "")
        )
        for resident in residents
    )


def _rates(packing: Packing, context: int) -> list[list[str]]:
    lines = [["deployment", "GPU", "1 sequence", "sequences at once", "all of them"]]
    seen = set()
    for gpu in packing.gpus:
        for resident in gpu.residents:
            need = resident.need
            if (need.deployment, gpu.type.name) in seen:
                continue
            seen.add((need.deployment, gpu.type.name))
            rows = _rows(resident, context)
            alone = tokens_per_s(need, gpu.type, 1, context)
            together = tokens_per_s(need, gpu.type, rows, context)
            if alone is not None and together is not None:
                figures = [f"{alone:.0f}", str(rows), f"{together:.0f}"]
                lines.append([need.deployment, gpu.type.name, *figures])
    return lines


def _rows(resident: Resident, context: int) -> int:
    if not resident.kv_tokens:
        return max(resident.need.max_sequences, 1)
    return max(1, min(resident.need.max_sequences, resident.kv_tokens // context))


def _missing(packing: Packing) -> list[str]:
    return [
        f"{need.deployment}: {short} of {max(1, need.min_replicas)}"
        f"{'' if need.min_replicas else ' (when a task asks for it)'}: {why_not(packing, need)}"
        for need, short in packing.missing()
    ]


def notes(packing: Packing) -> list[str]:
    """What an operator should know of a plan although everything that must fit does."""
    lines = []
    short = {need.deployment for need, _ in packing.missing()}
    for need in packing.needs:
        placed = packing.placed[need.deployment]
        if need.unknown is not None:
            lines.append(
                f"{need.deployment}: size unknown, placed by its share alone: {need.unknown} "
                "(--params ID=8B says it without a download)"
            )
        if need.deployment not in short and need.device == "cuda" and placed < need.max_replicas:
            lines.append(
                f"{need.deployment}: {placed} of at most {need.max_replicas} replicas fit: "
                f"{why_not(packing, need)}"
            )
        lines += [
            f"{need.deployment} does not fit on {gpu.name}, where Ray may put it: set "
            "accelerator_type"
            for gpu in misplaceable(packing, need)
        ]
        lines += _short_caches(packing, need)
    return lines


def _short_caches(packing: Packing, need: Need) -> list[str]:
    caches = [
        resident.kv_tokens
        for gpu in packing.gpus
        for resident in gpu.residents
        if resident.need is need and resident.kv_tokens
    ]
    if not caches or min(caches) >= need.context_length:
        return []
    return [
        f"{need.deployment}: its KV cache holds {min(caches)} tokens, less than its context of "
        f"{need.context_length}: longer tasks are refused. Set engine.context_length to what is "
        "wanted"
    ]


def plot(packing: Packing, file: Path) -> None:
    """Draw the memory of every GPU as a stack; by ``file``'s ending as PNG, SVG or PDF.

    Raises:
        ModuleNotFoundError: matplotlib is not installed.
    """
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot: Any = importlib.import_module("matplotlib.pyplot")
    figure, axis = pyplot.subplots(
        figsize=(9, 1.6 + 0.45 * max(len(packing.gpus), 1)), layout="constrained"
    )
    colours = {need.deployment: f"C{i}" for i, need in enumerate(packing.needs)}
    for row, gpu in enumerate(packing.gpus):
        left = 0.0
        for resident in gpu.residents:
            colour = colours[resident.need.deployment]
            for size, alpha in (
                (resident.weights, 1.0),
                (resident.kv_cache, 0.45),
                (PROCESS_BYTES, 0.15),
            ):
                axis.barh(row, size / GIB, left=left, color=colour, alpha=alpha, edgecolor="white")
                left += size / GIB
        axis.barh(row, gpu.type.memory_gib, color="none", edgecolor="black", linewidth=1)
    axis.set_yticks(
        range(len(packing.gpus)),
        labels=[f"{gpu.node}, GPU {gpu.index} ({gpu.type.name})" for gpu in packing.gpus],
    )
    axis.invert_yaxis()
    axis.set(xlabel="GiB: weights (dark), KV cache (light), process (pale); box: the GPU's memory")
    placed = [name for name in colours if packing.placed[name]]
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=colours[name]) for name in placed]
    if placed:
        figure.legend(patches, placed, loc="outside upper center", ncols=2)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
