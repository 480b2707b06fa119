"""The facts of a machine that `cluster.hardware.checks` judges, collected in one place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager

from cluster.hardware import kernels
from cluster.hardware.kernels import EqualBytesResult
from cluster.planning.ray_nodes import RayNode, running_nodes
from engine.platform.determinism import make_deterministic
from engine.platform.device_check import DeviceFacts, device_facts, device_problem

LIBRARIES = ("torch", "transformers", "ray", "bitsandbytes")
CONSTRAINTS = Path(__file__).resolve().parents[2] / "constraints.txt"

_CHECKS = {
    "INT4": kernels.int4_problem,
    "INT8": kernels.int8_problem,
    "attention": kernels.attention_problem,
}
_GPU_CHECKS = {
    **_CHECKS,
    "triton attention": kernels.triton_attention_problem,
    "paged attention": kernels.paged_attention_problem,
}


@dataclass(frozen=True)
class GpuFacts:
    """One GPU as torch sees it; memory in bytes. ``kernels``: the problem of each, or None.

    Neither kernels nor the demo model run if torch cannot compute on the GPU at all.
    """

    device: DeviceFacts
    memory: int
    free: int
    kernels: Mapping[str, str | None] = field(default_factory=dict)
    equal_bytes: EqualBytesResult | None = None


@dataclass(frozen=True)
class RayFacts:
    """What Ray finds on this machine, and in the running cluster if one was asked about.

    ``cluster`` is an error's text if it cannot be reached.
    """

    gpus: int
    accelerator_type: str | None
    cluster: tuple[RayNode, ...] | str | None = None


@dataclass(frozen=True)
class MachineFacts:
    """Everything that is checked.

    Attributes:
        python: its version.
        installed: versions of libraries; None for one that is missing.
        tested: the exact versions of constraints.txt; empty where that file is not here.
        driver: version of NVIDIA's driver; None without ``nvidia-smi``.
        driver_gpus: GPUs that the driver lists.
        torch: its build.
        gpus: those that torch sees.
        cpu_kernels: the problem of each, or None.
        cpu_equal_bytes: the demo model on the CPU.
        ray: Ray's view.
    """

    python: str
    installed: Mapping[str, str | None]
    tested: Mapping[str, str]
    driver: str | None
    driver_gpus: int
    torch: DeviceFacts
    gpus: tuple[GpuFacts, ...]
    cpu_kernels: Mapping[str, str | None]
    cpu_equal_bytes: EqualBytesResult
    ray: RayFacts


def collect(address: str | None = None) -> MachineFacts:
    """Check this machine, and run the kernels. Takes seconds; changes this process's settings.

    Args:
        address: of a running Ray cluster to check too; "auto" is the one of this machine.
    """
    driver, driver_gpus = _driver()
    make_deterministic(1)
    cpu = torch.device("cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return MachineFacts(
        python=sys.version.split()[0],
        installed={name: _installed(name) for name in LIBRARIES},
        tested=pinned_versions(CONSTRAINTS),
        driver=driver,
        driver_gpus=driver_gpus,
        torch=device_facts(cpu),
        gpus=tuple(_gpu(torch.device("cuda", index)) for index in range(count)),
        cpu_kernels={name: kernels.attempt(check, cpu) for name, check in _CHECKS.items()},
        cpu_equal_bytes=kernels.check_equal_bytes(cpu),
        ray=_ray(address),
    )


def pinned_versions(constraints: Path) -> dict[str, str]:
    """The exact versions of the libraries in a pip constraints file; empty if there is none."""
    if not constraints.is_file():
        return {}
    pins = (line.partition("==") for line in constraints.read_text("utf-8").splitlines())
    return {name: pinned for name, separator, pinned in pins if separator and name in LIBRARIES}


def _gpu(device: torch.device) -> GpuFacts:
    facts = device_facts(device)
    if device_problem(facts) is not None:
        return GpuFacts(facts, 0, 0)
    torch.cuda.set_device(device)
    free, memory = torch.cuda.mem_get_info(device)
    return GpuFacts(
        facts,
        memory,
        free,
        {name: kernels.attempt(check, device) for name, check in _GPU_CHECKS.items()},
        kernels.check_equal_bytes(device),
    )


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _driver() -> tuple[str | None, int]:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, 0
    lines = done.stdout.split()
    return (lines[0] if lines else None), len(lines)


def _ray(address: str | None) -> RayFacts:
    # Ray has no public function for the resources that it would find here.
    gpus = NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()
    kind = NvidiaGPUAcceleratorManager.get_current_node_accelerator_type()
    if address is None:
        return RayFacts(gpus, kind)
    try:
        return RayFacts(gpus, kind, tuple(running_nodes(address)))
    except ConnectionError as error:
        return RayFacts(gpus, kind, str(error).splitlines()[0])
