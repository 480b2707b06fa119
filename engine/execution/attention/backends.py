"""All attention backends by name; a platform says which are tried, and in which order."""

from __future__ import annotations

from collections.abc import Mapping

from engine.execution.attention.interface import AttentionBackend
from engine.execution.attention.paged import PerSequenceAttention
from engine.execution.attention.triton_paged import TritonAttention
from engine.execution.attention.varlen import VarlenAttention

BACKENDS: Mapping[str, type[AttentionBackend]] = {
    backend.name: backend for backend in (TritonAttention, VarlenAttention, PerSequenceAttention)
}
