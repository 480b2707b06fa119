"""Can this build of torch compute on this GPU? Asked before a model is loaded.

A wheel of torch holds kernels for some architectures only. On a card that is newer (or older) than
all of them everything works until the first kernel, which fails with "no kernel image is
available", minutes into loading. `check_device` reports it first, with what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

from schema.errors import TaskExecutionError

# The first CUDA whose compiler knows an architecture, newest first: NVIDIA's CUDA release notes.
_FIRST_CUDA = (((12, 1), "12.9"), ((12, 0), "12.8"), ((10, 3), "12.9"), ((10, 0), "12.8"))
_OLDEST_IN_CUDA_13 = (7, 5)
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)([af]?)")


@dataclass(frozen=True)
class DeviceFacts:
    """What torch says of itself and of one GPU.

    Attributes:
        torch: its version, such as ``2.13.0+cu128``.
        cuda: the CUDA that it was built for; None in a build for the CPU.
        architectures: of its kernels, such as ``sm_90`` (code) and ``compute_120`` (PTX, which the
            driver compiles for newer cards); empty where it sees no GPU.
        name: the GPU; None where it sees none.
        capability: the GPU's architecture: (12, 0) is sm_120.
        trial: the error of a first small kernel; None if it ran, or there is no GPU.
    """

    torch: str
    cuda: str | None
    architectures: tuple[str, ...] = ()
    name: str | None = None
    capability: tuple[int, int] | None = None
    trial: str | None = None


def check_device(device: torch.device) -> None:
    """Raise `TaskExecutionError` if torch cannot compute on ``device``; a CPU always passes."""
    if device.type == "cuda" and (problem := device_problem(device_facts(device))):
        raise TaskExecutionError(problem)


def device_facts(device: torch.device) -> DeviceFacts:
    """Ask torch, and run one kernel where there is a GPU."""
    cuda = torch.version.cuda
    if device.type != "cuda" or not torch.cuda.is_available():
        return DeviceFacts(torch.__version__, cuda)
    return DeviceFacts(
        torch.__version__,
        cuda,
        tuple(torch.cuda.get_arch_list()),
        torch.cuda.get_device_name(device),
        torch.cuda.get_device_capability(device),
        _trial(device),
    )


def _trial(device: torch.device) -> str | None:
    try:
        torch.ones(8, device=device).sum().item()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return None


def device_problem(facts: DeviceFacts) -> str | None:
    """Why torch cannot compute on the GPU, and what to do; None where it can."""
    if facts.cuda is None:
        return (
            f"torch {facts.torch} is a build for the CPU: install its CUDA build, the default "
            "wheel for Linux of the public package index"
        )
    if facts.name is None or facts.capability is None:
        return (
            f"torch {facts.torch} sees no GPU: see that nvidia-smi lists one, that its driver is "
            f"new enough for CUDA {facts.cuda}, and that CUDA_VISIBLE_DEVICES does not hide it"
        )
    if not any(runs_on(name, facts.capability) for name in facts.architectures):
        return (
            f"torch {facts.torch} has no kernels for {facts.name} "
            f"(sm_{facts.capability[0]}{facts.capability[1]}), only for "
            f"{', '.join(facts.architectures)}: {_way_out(facts.capability)}"
        )
    if facts.trial is not None:
        return (
            f"a first kernel fails on {facts.name} with torch {facts.torch}: {facts.trial}. "
            "Restart the process; if it stays, update the driver"
        )
    return None


def _way_out(capability: tuple[int, int]) -> str:
    for architecture, cuda in _FIRST_CUDA:
        if capability >= architecture:
            return f"install torch built for CUDA {cuda} or newer"
    if capability < _OLDEST_IN_CUDA_13:
        return "the card is too old for builds for CUDA 13; install torch built for CUDA 12"
    return "install a build of torch that lists it"


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether kernels for ``architecture`` run on a GPU of this capability.

    NVIDIA's rules of compatibility (CUDA C++ Programming Guide): code runs on its own major version
    from its own minor version up; PTX is compiled for anything newer; the suffix ``a`` means this
    one architecture only, ``f`` its family, which has one major version.
    """
    match = _ARCHITECTURE.fullmatch(architecture)
    if match is None:
        return False
    kind, major, minor, suffix = match[1], int(match[2]), int(match[3]), match[4]
    if suffix == "a":
        return capability == (major, minor)
    if kind == "compute" and not suffix:
        return capability >= (major, minor)
    return capability[0] == major and capability[1] >= minor
