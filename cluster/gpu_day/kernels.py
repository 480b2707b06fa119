"""A proof about the kernels by themselves, before any engine."""

from __future__ import annotations

import torch

from cluster.gpu_day.claim import Bench, Found, NotShownError
from cluster.hardware.kernels import (
    attempt,
    attention_problem,
    int4_problem,
    int8_problem,
    paged_attention_problem,
    triton_attention_problem,
)
from engine.platform.determinism import make_deterministic

_EVERYWHERE = {"INT4": int4_problem, "INT8": int8_problem, "attention": attention_problem}
_ON_CUDA = {
    "triton attention": triton_attention_problem,
    "paged attention": paged_attention_problem,
}


def agree(bench: Bench) -> Found:
    """Each kernel agrees with plain arithmetic."""
    make_deterministic(1)
    device = torch.device(bench.device)
    checks = _EVERYWHERE | (_ON_CUDA if bench.device == "cuda" else {})
    problems = {name: attempt(check, device) for name, check in checks.items()}
    if any(problems.values()):
        raise NotShownError(str({name: found for name, found in problems.items() if found}))
    return {"agree": ", ".join(checks)}
