"""The CPU: uses the host's memory, runs synchronously, and reads packed weights faster."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import numpy as np
import torch
from llvmlite.binding import get_host_cpu_name

from engine.platform.interface import KVLayout, Platform, Replay, Sizes

# What oneDNN's inner product takes. float16 needs instructions that few CPUs have.
_PACKED_DTYPES = (torch.float32, torch.bfloat16)


_GRAIN_ELEMENTS = 32768
"""Tensors of more elements are shared among threads, with at least about so many for each."""
_GELU_ELEMENTS = 16384
"""Of tensors with more elements, gelu gives every thread an equal share."""
_STEP_ELEMENTS = 64
"""Of two vectors of 16-bit numbers; those of float32 have half as many."""


class CpuPlatform(Platform):
    """All cores of the host as one device."""

    name = "cpu"
    # A chunk is the least that a prompt can add to a step, for which the answers of others wait: of
    # 32 rows a forward takes about twice what it takes of a few, which is bound by memory.
    default_sizes = Sizes(prefill_chunk=32, page_size=16, forward_rows=256)
    attention_backends = ("per sequence",)
    kv_layout: ClassVar[KVLayout] = "heads first"  # attention reads it twice as fast
    default_kv_bytes: ClassVar[int | None] = 1 << 30
    lookahead = False
    pins_memory = False
    shares_host_memory = True
    may_prepack = True

    def problem(self) -> str | None:
        """None: there is always a CPU."""
        return None

    def num_devices(self) -> int | None:
        """None: any number of processes can share the cores."""
        return None

    def current_device(self) -> torch.device:
        """The CPU."""
        return torch.device("cpu")

    def use_device(self, index: int) -> None:
        """There is nothing to choose."""

    def devices_of_stages(self, first: torch.device, num_devices: int) -> list[torch.device]:
        """The same device for all stages."""
        return [first] * num_devices

    def device_name(self, device: torch.device) -> str:
        """The compiler's name for it, because attention is compiled for it (`cpu_decode`)."""
        capability = torch.backends.cpu.get_cpu_capability()
        return f"{platform.machine()} {capability} {get_host_cpu_name()}"

    def arithmetic(self, devices: Sequence[torch.device]) -> dict[str, Any]:
        """Nothing: the name and the threads say all."""
        return {}

    def compute_threads(self) -> int | None:
        """The threads of torch: their number decides how sums are split."""
        return torch.get_num_threads()

    def kv_room(self, device: torch.device) -> int | None:
        """None: other programs use the same memory, so what is free now says little."""
        return None

    def zeros(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Zeros of numpy, which leaves it to the system to clear a page when it is used.

        torch would take seconds for a gigabyte, most of which may never be needed.
        """
        num_bytes = math.prod(shape) * dtype.itemsize
        return torch.from_numpy(np.zeros(num_bytes, dtype=np.uint8)).view(dtype).view(*shape)

    def write_rows(self, rows: torch.Tensor, *writes: tuple[torch.Tensor, torch.Tensor]) -> None:
        """By plain index assignment."""
        for target, source in writes:
            target[rows] = source

    def empty_cache(self) -> None:
        """torch keeps no memory of the host (`engine.platform.malloc`)."""

    def to_host(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
        """The tensor itself, which is there already."""
        return tensor, _nothing

    def make_deterministic(self) -> None:
        """Nothing besides the settings for all devices (`engine.platform.determinism`)."""

    def random_state_kept(self, device: torch.device) -> AbstractContextManager[None]:
        """Of the host's generator alone."""
        return torch.random.fork_rng(devices=[])

    def rounds_alike(self, num_elements: int) -> bool:
        """Whether every thread's share of a tensor is whole steps of the vector loop.

        torch computes the rest of a share, and of a tensor, element by element with another
        implementation of exp, tanh, cos and the like, which may round otherwise. How it shares:
        ATen/native/cpu/Loops.h (``vectorized_loop``: two vectors in a step), ATen/ParallelOpenMP.h
        with the grain size of ATen/TensorIterator.h, and for gelu that of
        ATen/native/cpu/Activation.cpp, of torch 2.13.
        """
        most = torch.get_num_threads()
        usual = min(most, -(-num_elements // _GRAIN_ELEMENTS))
        shared = {1, usual} if num_elements <= _GELU_ELEMENTS else {1, usual, most}
        return all(num_elements % (threads * _STEP_ELEMENTS) == 0 for threads in shared)

    def packs_weights(self, dtype: torch.dtype) -> bool:
        """Whether oneDNN is there and packs weights of this dtype."""
        return (
            dtype in _PACKED_DTYPES
            and torch.backends.mkldnn.is_available()
            and (dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
        )

    def float_copier(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """One that keeps its memory.

        The C library would give back 40 MB (64 rows of 152,000 tokens) after each step, and the
        kernel would clear them for the next one.
        """
        kept: torch.Tensor | None = None

        def copy(logits: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            rows, vocab = logits.shape
            if kept is None or len(kept) < rows:
                kept = torch.empty(rows, vocab)
            return kept[:rows].copy_(logits)

        return copy

    def graph_recorder(self) -> Callable[[Replay], Replay]:
        """One that records nothing."""
        return _as_it_is

    def rank_problem(self) -> str | None:
        """transformers would put the ranks on accelerators, if it saw any."""
        if torch.accelerator.is_available():
            return (
                "device is 'cpu' and num_devices more than 1, which needs GPUs to be hidden from "
                "this process: set CUDA_VISIBLE_DEVICES to nothing"
            )
        return None

    def group_options(self, device: torch.device) -> dict[str, Any]:
        """gloo, on this machine: it would look for a network by the host's name."""
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        return {"backend": "gloo"}


def _nothing() -> None:
    """There is nothing to wait for."""


def _as_it_is(forward: Replay) -> Replay:
    return forward
