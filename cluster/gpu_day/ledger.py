"""What a day has shown: as JSON, and as the table of docs/gpu.md."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cluster.gpu_day.claim import Device, Result

_LIBRARIES = ("torch", "transformers", "triton", "bitsandbytes", "numba")


def machine(device: Device) -> dict[str, Any]:
    """On what the claims are tried."""
    about: dict[str, Any] = {"python": platform.python_version(), "device": platform.machine()}
    about |= {name: _version(name) for name in _LIBRARIES}
    if device == "cuda" and torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        about["device"] = f"{torch.cuda.device_count()} x {properties.name}"
        about["capability"] = f"{properties.major}.{properties.minor}"
        about["multiprocessors"] = properties.multi_processor_count
        about["memory_gib"] = round(properties.total_memory / 2**30, 1)
        about["cuda"] = torch.version.cuda
    return about


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write(folder: Path, about: Mapping[str, Any], results: Sequence[Result]) -> None:
    """``gpu-day.json`` and ``gpu-day.md``, over those that are there."""
    folder.mkdir(parents=True, exist_ok=True)
    everything = {"machine": about, "claims": [asdict(result) for result in results]}
    (folder / "gpu-day.json").write_text(json.dumps(everything, indent=1) + "\n")
    (folder / "gpu-day.md").write_text(table(about, results))


def table(about: Mapping[str, Any], results: Sequence[Result]) -> str:
    """The claims as Markdown, with what was found."""
    lines = [", ".join(f"{name} {value}" for name, value in about.items()), ""]
    lines += ["| claim | result | seconds |", "|---|---|---|"]
    for result in results:
        said = f"**{result.status}**" + (f": {result.told}" if result.told else "")
        lines.append(f"| {result.says} | {said.replace('|', chr(92) + '|')} | {result.seconds:g} |")
    return "\n".join(lines) + "\n"
