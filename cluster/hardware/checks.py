"""Judges the facts of a machine: one line for each, which passes or says what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from cluster.hardware.machine import GpuFacts, MachineFacts
from cluster.planning.gpus import GIB
from engine.platform.device_check import device_problem
from serve_app.config.accelerators import ACCELERATOR_TYPES

Status = Literal["ok", "failed", "no GPU"]

_EXACT = ("torch", "transformers", "ray")  # an answer's bytes or Ray's behaviour depend on them
# The oldest driver for Linux of each major CUDA, by "minor version compatibility", and the one of
# CUDA 12.8, the first that knows the Blackwell architecture: CUDA Toolkit release notes
# (docs.nvidia.com/cuda/cuda-toolkit-release-notes), tables of driver versions.
_DRIVERS = {12: "525.60.13", 13: "580.65.06"}
_BLACKWELL, _BLACKWELL_DRIVER = (10, 0), "570.26"
_LEAST_FREE = 2 * GIB
_WAY_OUT = {
    "INT4": "reinstall bitsandbytes in the version of constraints.txt",
    "INT8": "reinstall bitsandbytes in the version of constraints.txt",
    "attention": "reinstall torch in the version of constraints.txt",
    "triton attention": "install a C compiler, and let TRITON_CACHE_DIR (else ~/.triton) be "
    "writable; without it torch's paged attention runs, if it is correct",
    "paged attention": "reinstall torch in the version of constraints.txt; without either of the "
    "two attention runs sequence by sequence, correct and slower",
}


@dataclass(frozen=True)
class Line:
    """One check: what was found, and what to do if it failed."""

    name: str
    status: Status
    found: str
    way_out: str | None = None


def judge(facts: MachineFacts, *, gpu_required: bool = False) -> list[Line]:
    """All checks of a machine.

    Args:
        facts: what was found.
        gpu_required: a machine without a GPU that torch can use fails.
    """
    return [
        *_versions(facts),
        *_driver(facts, gpu_required),
        *(line for index, gpu in enumerate(facts.gpus) for line in _gpu(index, gpu)),
        *_kernels("CPU", facts.cpu_kernels),
        _equal_bytes("CPU", facts.cpu_equal_bytes.problem, facts.cpu_equal_bytes.fingerprint),
        *_ray(facts),
    ]


def _versions(facts: MachineFacts) -> Iterator[Line]:
    yield Line("python", "ok", facts.python)
    for name, installed in facts.installed.items():
        tested = facts.tested.get(name)
        install = f"pip install '{name}{f'=={tested}' if tested else ''}'"
        if installed is None:
            yield Line(name, "failed", "not installed", install)
        elif tested and name in _EXACT and installed.split("+")[0] != tested:
            yield Line(name, "failed", f"{installed}; tested is {tested}", install)
        else:
            cuda = f", built for {_build(facts)}" if name == "torch" else ""
            yield Line(name, "ok", f"{installed}{cuda}")


def _build(facts: MachineFacts) -> str:
    return f"CUDA {facts.torch.cuda}" if facts.torch.cuda else "the CPU"


def _driver(facts: MachineFacts, gpu_required: bool) -> Iterator[Line]:
    missing: Status = "failed" if gpu_required else "no GPU"
    if facts.driver is None:
        yield Line(
            "driver",
            missing,
            "nvidia-smi does not run, so NVIDIA's driver is missing",
            "install NVIDIA's driver" if gpu_required else None,
        )
        return
    needed = _needed_driver(facts)
    if needed and _number(facts.driver) < _number(needed):
        yield Line(
            "driver",
            "failed",
            f"{facts.driver}, {facts.driver_gpus} GPUs",
            f"install driver {needed} or newer, which torch {facts.torch.torch} needs here",
        )
    else:
        yield Line("driver", "ok", f"{facts.driver}, {facts.driver_gpus} GPUs")
    if not facts.gpus:
        # The driver sees GPUs that torch does not see.
        yield Line("GPUs of torch", "failed", "none", device_problem(facts.torch))


def _needed_driver(facts: MachineFacts) -> str | None:
    if facts.torch.cuda is None:
        return None
    needed = _DRIVERS.get(int(facts.torch.cuda.split(".")[0]))
    is_blackwell = any((gpu.device.capability or (0, 0)) >= _BLACKWELL for gpu in facts.gpus)
    if is_blackwell:
        return max(needed or _BLACKWELL_DRIVER, _BLACKWELL_DRIVER, key=_number)
    return needed


def _number(driver: str) -> tuple[int, ...]:
    return tuple(int(part) for part in driver.split(".") if part.isdigit())


def _gpu(index: int, gpu: GpuFacts) -> Iterator[Line]:
    name = f"GPU {index}"
    if problem := device_problem(gpu.device):
        found, _, way_out = problem.partition(": ")
        yield Line(name, "failed", found, way_out)
        return
    capability = "".join(map(str, gpu.device.capability or ()))
    yield Line(name, "ok", f"{gpu.device.name}, sm_{capability}")
    memory = f"{gpu.free / GIB:.1f} of {gpu.memory / GIB:.1f} GiB free"
    if gpu.free < _LEAST_FREE:
        yield Line(f"{name} memory", "failed", memory, "nvidia-smi says who has it")
    else:
        yield Line(f"{name} memory", "ok", memory)
    yield from _kernels(name, gpu.kernels)
    if gpu.equal_bytes is not None:
        by = f"{gpu.equal_bytes.fingerprint}, attention by {gpu.equal_bytes.attention}"
        yield _equal_bytes(name, gpu.equal_bytes.problem, by)


def _kernels(where: str, kernels: Mapping[str, str | None]) -> Iterator[Line]:
    for name, problem in kernels.items():
        if problem is None:
            yield Line(f"{where} {name}", "ok", "correct")
        else:
            yield Line(f"{where} {name}", "failed", problem, _WAY_OUT.get(name))


def _equal_bytes(where: str, problem: str | None, found: str | None) -> Line:
    name = f"{where} equal bytes"
    if problem is None:
        return Line(name, "ok", f"demo model, alone and under load ({found})")
    return Line(
        name,
        "failed",
        problem,
        "the promise does not hold here: report this output, and do not rely on equal answers",
    )


def _ray(facts: MachineFacts) -> Iterator[Line]:
    ray, seen = facts.ray, len(facts.gpus)
    found = f"finds {ray.gpus} GPUs here"
    if ray.accelerator_type is not None:
        found += f", accelerator_type: {ray.accelerator_type}"
        if ray.accelerator_type not in ACCELERATOR_TYPES:
            found += " (not known to serve_config.yaml: leave accelerator_type out)"
    if ray.gpus != seen and facts.driver is not None:
        yield Line(
            "Ray",
            "failed",
            f"{found}, torch sees {seen}",
            "see CUDA_VISIBLE_DEVICES, and the lines of the GPUs above",
        )
    else:
        yield Line("Ray", "ok" if ray.gpus else "no GPU", found)
    if isinstance(ray.cluster, str):
        yield Line("Ray cluster", "failed", ray.cluster, "start it, or see RAY_AUTH_MODE=token")
    elif ray.cluster is not None:
        for node in ray.cluster:
            of = f" of {node.accelerator_type}" if node.accelerator_type else ""
            yield Line("Ray cluster", "ok", f"{node.name}: {node.num_gpus:g} GPUs{of}")
