"""If a build of torch cannot compute on a GPU, the error is one clear line."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from engine import EngineConfig
from engine.loading.loader import load_model
from engine.platform.device_check import (
    DeviceFacts,
    check_device,
    device_facts,
    device_problem,
    runs_on,
)
from schema.errors import ModelInvalid
from tests.engine.conftest import TinyModel

# What `torch.cuda.get_arch_list()` gives for wheels of the public index.
CU126 = ("sm_50", "sm_60", "sm_70", "sm_75", "sm_80", "sm_86", "sm_90")
CU128 = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")

RTX_5090: dict[str, Any] = {"name": "NVIDIA GeForce RTX 5090", "capability": (12, 0)}
RTX_4090: dict[str, Any] = {"name": "NVIDIA GeForce RTX 4090", "capability": (8, 9)}
H100: dict[str, Any] = {"name": "NVIDIA H100 80GB HBM3", "capability": (9, 0)}
V100: dict[str, Any] = {"name": "Tesla V100-SXM2-16GB", "capability": (7, 0)}


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (DeviceFacts("2.13.0+cu130", "13.0", CU130, **RTX_5090), None),
        (DeviceFacts("2.13.0+cu128", "12.8", CU128, **RTX_5090), None),
        (DeviceFacts("2.13.0+cu130", "13.0", CU130, **RTX_4090), None),  # sm_86 code
        (DeviceFacts("2.13.0+cu126", "12.6", CU126, **H100), None),
        (DeviceFacts("2.13.0+cu126", "12.6", CU126, **RTX_5090), r"sm_120.*CUDA 12\.8 or newer"),
        (DeviceFacts("2.13.0+cu130", "13.0", CU130, **V100), "too old for builds for CUDA 13"),
        (DeviceFacts("2.13.0+cpu", None), "build for the CPU"),
        (DeviceFacts("2.13.0+cu130", "13.0"), "sees no GPU.*nvidia-smi"),
        (
            DeviceFacts("2.13.0+cu130", "13.0", CU130, **H100, trial="CUDA error: unknown"),
            "first kernel fails on NVIDIA H100.*CUDA error: unknown",
        ),
    ],
)
def test_the_problem_and_its_way_out(facts: DeviceFacts, says: str | None) -> None:
    problem = device_problem(facts)
    assert problem is None if says is None else re.search(says, str(problem))


@pytest.mark.parametrize(
    ("architecture", "capability", "runs"),
    [
        ("sm_80", (8, 6), True),
        ("sm_86", (8, 0), False),
        ("sm_90", (12, 0), False),  # code is of one major version
        ("compute_90", (12, 0), True),  # PTX is not
        ("compute_120", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("sm_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
        ("gfx942", (9, 0), False),
    ],
)
def test_which_code_runs_where(architecture: str, capability: tuple[int, int], runs: bool) -> None:
    assert runs_on(architecture, capability) == runs


def test_a_cpu_always_passes() -> None:
    check_device(torch.device("cpu"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_engine_on_cuda_says_why_there_is_no_gpu(tiny_model: TinyModel) -> None:
    with pytest.raises(ModelInvalid, match=r"device is 'cuda', but torch .*or use 'auto' or 'cpu'"):
        load_model(EngineConfig(model=str(tiny_model("qwen2")), device="cuda"))


@pytest.mark.gpu
def test_this_gpu_computes() -> None:
    facts = device_facts(torch.device("cuda", 0))
    assert facts.name is not None
    assert device_problem(facts) is None
