"""What depends on the kind of device: one class for each kind, and no other module asks for it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

KVLayout = Literal["heads first", "tokens first"]
"""What is contiguous in a KV cache: all tokens of a head, or all heads of a token."""

Replay = Callable[[], torch.Tensor]
"""Runs a forward on inputs that stay where they are."""


@dataclass(frozen=True)
class Sizes:
    """How prompts and the KV cache are cut.

    Attributes:
        prefill_chunk: tokens of a chunk of a prompt.
        page_size: tokens of a page.
        forward_rows: rows of the largest forward; two chunks at least.
    """

    prefill_chunk: int
    page_size: int
    forward_rows: int


class Platform(ABC):
    """One kind of device. It has no state: its methods return what belongs to one model.

    Attributes:
        name: torch's name for the type of device.
        default_sizes: sizes for this device, if the configuration has none.
        attention_backends: names of the backends to try, in order (`engine.execution.attention`).
        kv_layout: the order of a KV cache, where the attention backend takes either.
        default_kv_bytes: the largest KV cache where the configuration does not say; None takes
            what is free.
        lookahead: whether the device computes while Python prepares the next step.
        pins_memory: whether copies from page-locked memory run beside the host.
        shares_host_memory: whether tensors can be read as numpy's arrays.
        may_prepack: whether weights may be kept in a packed copy
            (`engine.execution.modules.prepack`).
    """

    name: ClassVar[str]
    default_sizes: ClassVar[Sizes]
    attention_backends: ClassVar[Sequence[str]]
    kv_layout: ClassVar[KVLayout]
    default_kv_bytes: ClassVar[int | None]
    lookahead: ClassVar[bool]
    pins_memory: ClassVar[bool]
    shares_host_memory: ClassVar[bool]
    may_prepack: ClassVar[bool]

    # --- Which devices there are -----------------------------------------------------------------

    @abstractmethod
    def problem(self) -> str | None:
        """Why this process has no such device; None where it has one."""

    @abstractmethod
    def num_devices(self) -> int | None:
        """Devices that this process sees; None where any number of processes can share it."""

    @abstractmethod
    def current_device(self) -> torch.device:
        """The device of this process; torch can compute on it.

        Raises:
            TaskExecutionError: it cannot (`engine.platform.device_check`).
        """

    @abstractmethod
    def use_device(self, index: int) -> None:
        """Make one of the devices that this process sees its current one."""

    @abstractmethod
    def devices_of_stages(self, first: torch.device, num_devices: int) -> list[torch.device]:
        """The first device and others for a model whose layers are split over several.

        Raises:
            ModelInvalid: there are not as many.
            TaskExecutionError: torch cannot compute on one of them.
        """

    @abstractmethod
    def device_name(self, device: torch.device) -> str:
        """The device, as its driver or compiler names it; a part of the fingerprint."""

    @abstractmethod
    def arithmetic(self, devices: Sequence[torch.device]) -> dict[str, Any]:
        """What the bits of an answer depend on beside their names; a part of the fingerprint.

        As JSON can say it, under names that cards have nothing else for.
        """

    @abstractmethod
    def compute_threads(self) -> int | None:
        """Threads that the bits of an answer depend on; None where they do not."""

    # --- Memory ----------------------------------------------------------------------------------

    @abstractmethod
    def kv_room(self, device: torch.device) -> int | None:
        """Bytes that a KV cache may take of what is free now; None where the host decides."""

    @abstractmethod
    def zeros(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Zeros for a large tensor that is filled gradually."""

    @abstractmethod
    def write_rows(self, rows: torch.Tensor, *writes: tuple[torch.Tensor, torch.Tensor]) -> None:
        """Write each pair's second tensor to the ``rows`` of its first.

        No row comes twice, except for rows whose content is never read.
        """

    @abstractmethod
    def empty_cache(self) -> None:
        """Give back memory that torch keeps for later."""

    # --- Between the host and the device ---------------------------------------------------------

    @abstractmethod
    def to_host(self, tensor: torch.Tensor) -> tuple[torch.Tensor, Callable[[], None]]:
        """Start a copy to the host; the second result waits until it is complete."""

    # --- Computing -------------------------------------------------------------------------------

    @abstractmethod
    def make_deterministic(self) -> None:
        """Pin what lets the same operation give other bits on such a device; before it is used."""

    @abstractmethod
    def random_state_kept(self, device: torch.device) -> AbstractContextManager[None]:
        """The generators that ``torch.manual_seed`` sets are put back at the end of the body."""

    @abstractmethod
    def rounds_alike(self, num_elements: int) -> bool:
        """Whether all elements of a tensor of this size get a function's result in the same way.

        If not, the bits of ``exp(x)`` may depend on where in the tensor x stands.
        """

    @abstractmethod
    def packs_weights(self, dtype: torch.dtype) -> bool:
        """Whether this build of torch and this device pack weights of a dtype."""

    @abstractmethod
    def float_copier(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """What copies the logits [rows, vocab] of one model to float32.

        The copy is a tensor that the model does not use, and that the next call may overwrite.
        """

    @abstractmethod
    def graph_recorder(self) -> Callable[[Replay], Replay]:
        """What makes a forward of one model cheaper to launch, for all of its shapes.

        Where the device has no graphs, a forward is launched as it is.
        """

    # --- Several ranks ---------------------------------------------------------------------------

    @abstractmethod
    def rank_problem(self) -> str | None:
        """Why this process cannot be a rank of a model on such devices; None where it can."""

    @abstractmethod
    def group_options(self, device: torch.device) -> dict[str, Any]:
        """What `torch.distributed.init_process_group` is given for such a device."""

    # --- The same for all ------------------------------------------------------------------------

    def sizes(self, prefill_chunk: int | None, page_size: int | None) -> Sizes:
        """The sizes of a configuration, with the defaults where it has none."""
        usual = self.default_sizes
        page_size = page_size or usual.page_size
        if prefill_chunk is None:
            return Sizes(usual.prefill_chunk, page_size, usual.forward_rows)
        # Known prefixes of recurrent layers begin where a forward has ended, not at every chunk.
        return Sizes(prefill_chunk, page_size, 2 * prefill_chunk)
