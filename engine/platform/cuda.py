"""GPUs that torch reaches by CUDA: memory of their own, streams that run beside Python, graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

import torch

from engine.platform.cuda_facts import cuda_facts
from engine.platform.device_check import check_device, device_facts, device_problem
from engine.platform.interface import KVLayout, Platform, Replay, Sizes
from schema.errors import ModelInvalid

KEPT_SHARE, LEAST_KEPT = 0.15, 2 << 30
"""The share of the memory after the weights that a KV cache leaves, and the least number of bytes:
for activations, towers of images, the workspaces of libraries, and graphs."""

_WARM_UPS = 3  # kernels that tune themselves, and libraries that allocate, do so before the capture


def kv_room_of(free: int) -> int:
    """Bytes that a KV cache may take of those that are free beside the weights."""
    return max(0, free - max(int(free * KEPT_SHARE), LEAST_KEPT))


class CudaPlatform(Platform):
    """NVIDIA's GPUs."""

    name = "cuda"
    # The paged attention kernel takes pages of multiples of 256 tokens, and larger chunks fill the
    # device.
    default_sizes = Sizes(prefill_chunk=512, page_size=256, forward_rows=1024)
    attention_backends = ("triton kernel", "paged kernel", "per sequence")
    kv_layout: ClassVar[KVLayout] = "tokens first"  # as paged kernels want it
    default_kv_bytes: ClassVar[int | None] = None
    lookahead = True
    pins_memory = True
    shares_host_memory = False
    may_prepack = False

    def problem(self) -> str | None:
        """Why torch sees no GPU."""
        if torch.cuda.is_available():
            return None
        return device_problem(device_facts(torch.device("cuda")))

    def num_devices(self) -> int | None:
        """The GPUs that are visible here."""
        return torch.cuda.device_count()

    def current_device(self) -> torch.device:
        """The current GPU, checked."""
        device = torch.device("cuda", torch.cuda.current_device())
        check_device(device)
        return device

    def use_device(self, index: int) -> None:
        """Make a GPU the current one."""
        torch.cuda.set_device(index)

    def devices_of_stages(self, first: torch.device, num_devices: int) -> list[torch.device]:
        """The first GPU, then the others in order."""
        seen = torch.cuda.device_count()
        if num_devices > seen:
            raise ModelInvalid(
                f"num_devices is {num_devices}, but this process sees {seen} GPUs "
                "(CUDA_VISIBLE_DEVICES says which)"
            )
        others = [torch.device("cuda", index) for index in range(seen) if index != first.index]
        devices = [first, *others[: num_devices - 1]]
        for device in devices:
            check_device(device)
        return devices

    def device_name(self, device: torch.device) -> str:
        """The driver's name for it."""
        return torch.cuda.get_device_name(device)

    def arithmetic(self, devices: Sequence[torch.device]) -> dict[str, Any]:
        """See `engine.platform.cuda_facts`."""
        return {"cuda": cuda_facts(devices)}

    def compute_threads(self) -> int | None:
        """None: the host's threads compute nothing."""
        return None

    def kv_room(self, device: torch.device) -> int | None:
        """What is free on the GPU, but for a share; what torch keeps for itself is free too."""
        torch.cuda.empty_cache()
        return kv_room_of(torch.cuda.mem_get_info(device)[0])

    def zeros(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Zeros on the GPU."""
        return torch.zeros(*shape, dtype=dtype, device=device)

    def write_rows(self, rows: torch.Tensor, *writes: tuple[torch.Tensor, torch.Tensor]) -> None:
        """In any order, and so without sorting the rows first."""
        with _unsorted_writes():
            for target, source in writes:
                target.index_copy_(0, rows, source)

    def empty_cache(self) -> None:
        """Give back what torch's allocator keeps."""
        torch.cuda.empty_cache()

    def to_host(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
        """A copy that is a part of the current stream, and an event after it."""
        copy = tensor.to("cpu", non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        return copy, copied.synchronize

    def make_deterministic(self) -> None:
        """Pin the algorithms of cuDNN and the precision of float32.

        cuBLAS is pinned by the environment (`engine.platform.environment`).
        """
        # cuDNN's autotuner times kernels, so its choice differs from run to run.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        # fp32 means fp32: TF32 would round inputs on cards that have it.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False

    def random_state_kept(self, device: torch.device) -> AbstractContextManager[None]:
        """Of the host's generator and the GPU's."""
        return torch.random.fork_rng(devices=[device])

    def rounds_alike(self, num_elements: int) -> bool:
        """True: every element has a thread of its own, or a turn of the same one."""
        return True

    def packs_weights(self, dtype: torch.dtype) -> bool:
        """Never: the kernels read weights as they are."""
        return False

    def float_copier(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """A plain copy: torch keeps the GPU's memory anyway, and graphs have their own."""
        return _float_copy

    def graph_recorder(self) -> Callable[[Replay], Replay]:
        """One that captures CUDA graphs, which share one pool of memory and one stream.

        cuBLAS keeps a workspace of tens of megabytes for each stream that it has run on.
        """
        pool = torch.cuda.graph_pool_handle()
        stream: torch.cuda.Stream | None = None

        def record(forward: Replay) -> Replay:
            nonlocal stream
            stream = stream or torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    forward()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                output = forward()

            def replay() -> torch.Tensor:
                graph.replay()
                return output

            return replay

        return record

    def rank_problem(self) -> str | None:
        """None: each rank has a GPU of its own."""
        return None

    def group_options(self, device: torch.device) -> dict[str, Any]:
        """NCCL, on this rank's GPU."""
        return {"backend": "nccl", "device_id": device}


def _float_copy(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.float32, copy=True)


@contextmanager
def _unsorted_writes() -> Iterator[None]:
    """Let writes to indices run in any order.

    Deterministic mode sorts the indices first, in case one comes twice. Here only those in the
    scratch page do, whose content is never read.
    """
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True)
