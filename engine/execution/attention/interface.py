"""The attention function that is given to transformers, and the backends that it calls.

transformers' modules call the function registered under `PACKED` with the projected queries, keys
and values of a packed batch (https://huggingface.co/docs/transformers/attention_interface). Each
row of the batch is one token of some sequence. The function hands them to what computes attention
for the forward (`attending`), which an `AttentionBackend` has made.

Shapes: T rows in the packed batch, H query heads, K key/value heads, D head size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from engine.execution.attention.packing import PagedRows
from engine.execution.kv_cache import KVCache, KVShape
from engine.platform.interface import KVLayout
from engine.requests.request import ScheduledTokens

PACKED = "paged_per_sequence"
"""The name under which transformers knows `packed_attention`."""
MEASURED = "paged_per_sequence, measured"
"""Its name in the forward that measures a model: only there transformers is asked for masks, which
would take time in every forward.
"""

# Arguments that change the result and that this function does not implement. A model that passes
# one is refused here, and then all its tasks run through `generate`.
UNSUPPORTED = ("head_mask", "position_bias", "attention_bias")


class UnsupportedAttentionError(NotImplementedError):
    """The model needs attention that no backend computes for a packed batch."""


@dataclass(frozen=True, eq=False)
class AttentionForm:
    """How a layer makes weights of queries and keys.

    Attributes:
        scaling: of the scores; None for one by the square root of the head size.
        sliding_window: how many tokens are seen, the last one included; None for all.
        chunk: if given, only tokens of the same chunk are seen; chunks of so many tokens are cut
            from the beginning of the sequence.
        softcap: scores are ``softcap * tanh(score / softcap)``, if it is given.
        sinks: [H], scores of a key without a value, which each head sees; None for none.
    """

    scaling: float | None = None
    sliding_window: int | None = None
    softcap: float | None = None
    sinks: torch.Tensor | None = None
    chunk: int | None = None

    @property
    def is_usual(self) -> bool:
        """Whether it is softmax of scores alone, which torch's own kernels compute."""
        return self.softcap is None and self.sinks is None


class Attend(Protocol):
    """What computes attention for the current forward."""

    def attend(
        self,
        layer: int,
        query: torch.Tensor,  # [H, T, D]
        key: torch.Tensor,  # [K, T, D]
        value: torch.Tensor,  # [K, T, D]
        form: AttentionForm,
    ) -> torch.Tensor:  # [T, H, D]
        """Attention output of one layer."""
        ...


class Batch(Attend, Protocol):
    """The same for the tokens of a packed batch, whose keys and values it stores first."""

    def on(self, device: torch.device) -> Batch:
        """The same batch for layers on another device."""
        ...


@dataclass(frozen=True)
class AttentionNeeds:
    """What a model and its configuration need of attention.

    Attributes:
        shapes: of the keys and values of each layer.
        page_size: tokens of a page of the KV cache.
        device: where the numbers of a batch are.
        bidirectional_spans: whether some tokens attend to later ones, as parts of one image.
    """

    shapes: Mapping[int, KVShape]
    page_size: int
    device: torch.device
    bidirectional_spans: bool


class AttentionBackend(ABC):
    """One way to compute attention over the paged KV cache: one class for each kernel.

    Attributes:
        name: in configurations of platforms and in cards; a part of the fingerprint.
        decodes_apart: whether a decode step runs other kernels than a prefill of as many rows.
        captures_decode: whether decode steps can be captured as graphs (`decode_batch`).
        kv_layout: the order of the KV cache in memory; None takes what suits the device.
    """

    name: ClassVar[str]
    decodes_apart: ClassVar[bool]
    captures_decode: ClassVar[bool]
    kv_layout: ClassVar[KVLayout | None] = None

    def __init__(self, max_rows: int) -> None:
        """``max_rows``: rows of the largest forward."""
        self.max_rows = max_rows

    @classmethod
    @abstractmethod
    def problem(cls, needs: AttentionNeeds) -> str | None:
        """Why this backend does not support a model; None if it does, as far as is known."""

    @abstractmethod
    def batch(
        self, cache: KVCache, scheduled: Sequence[ScheduledTokens], num_rows: int, *, decode: bool
    ) -> Batch:
        """The object that computes attention for a forward.

        Args:
            cache: where keys and values are.
            scheduled: the tokens of the forward, in the order of its rows.
            num_rows: rows of the forward; those after the tokens are padding.
            decode: it is a decode step: the tokens are the last ones of their sequences.
        """

    def decode_batch(self, cache: KVCache, rows: PagedRows) -> Batch:
        """The same for a decode step whose numbers are on the device already.

        It does not read them on the host: they may change before a captured graph runs again.
        """
        raise NotImplementedError(f"{self.name} does not capture decode steps")


class LayerCalls:
    """Numbers the calls of attention in a forward.

    A layer that calls it several times, or is run several times, has keys and values for each; so
    have attention modules that several layers share, and that have no number (Zamba).
    """

    def __init__(self) -> None:
        self._calls = Counter[int]()

    def layer(self, module: Any) -> int:
        """The layer in the KV cache of an attention module that is called now."""
        layer = module.layer_idx
        if not isinstance(layer, int):
            layer = -1
        self._calls[layer] += 1
        return layer + _AGAIN * (self._calls[layer] - 1)


_AGAIN = 2**20  # more than any model has layers
_attending: ContextVar[tuple[Attend, LayerCalls]] = ContextVar("attending")
_MASKED = "_masked_keys"


@contextmanager
def attending(batch: Attend) -> Iterator[None]:
    """In the body, on this thread, this computes the attention of forwards.

    It is not an argument of the forward, because some models do not hand arguments on.
    """
    token = _attending.set((batch, LayerCalls()))
    try:
        yield
    finally:
        _attending.reset(token)


def packed_forward_runs() -> bool:
    """Whether a forward on this thread has its attention from a batch, and is not a model's own."""
    return _attending.get(None) is not None


@dataclass(frozen=True)
class MaskedKeys:
    """What a model's mask leaves of all earlier tokens, in place of that mask; see `AttentionForm`.

    Some models say it to the function that makes masks, and not to attention.
    """

    sliding_window: int | None = None
    chunk: int | None = None


def masked_keys(config: Any, local_size: int | None = None, **_: Any) -> MaskedKeys | None:
    """transformers' mask interface: a window or chunks of ``local_size`` tokens, or None."""
    if local_size is None:
        return None
    if local_size == getattr(config, "attention_chunk_size", None):
        return MaskedKeys(chunk=local_size)
    return MaskedKeys(sliding_window=local_size)


def packed_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention interface: query [1, H, T, D] -> output [1, T, H, D]."""
    if asked := [name for name in UNSUPPORTED if kwargs.get(name) is not None]:
        raise UnsupportedAttentionError(f"attention with {', '.join(asked)}")
    batch, calls = _attending.get()
    masked = getattr(module, _MASKED, MaskedKeys())
    window = masked.sliding_window if sliding_window is None else sliding_window
    form = AttentionForm(scaling, window, softcap, s_aux, masked.chunk)
    output = batch.attend(calls.layer(module), query[0], key[0], value[0], form)
    return output.unsqueeze(0), None


def measured_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | MaskedKeys | None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """`packed_attention` that notes what the mask leaves, for the forwards to come."""
    if isinstance(attention_mask, MaskedKeys):
        setattr(module, _MASKED, attention_mask)
    return packed_attention(module, query, key, value, None, **kwargs)


AttentionInterface.register(PACKED, packed_attention)
AttentionInterface.register(MEASURED, measured_attention)
AttentionMaskInterface.register(MEASURED, masked_keys)


@dataclass(frozen=True)
class PlacedBatch:
    """A batch of a model whose layers lie on several devices: for each layer, its device's."""

    batches: Mapping[int, Attend]

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        form: AttentionForm,
    ) -> torch.Tensor:
        """Attend on the layer's device."""
        return self.batches[layer].attend(layer, query, key, value, form)


@dataclass
class ShapeRecorder:
    """Stands in for a batch once, at load, to learn the KV shapes of the model's layers."""

    shapes: dict[int, KVShape] = field(default_factory=dict)

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        form: AttentionForm,
    ) -> torch.Tensor:
        """Note the shapes and return zeros."""
        self.shapes[layer] = KVShape(key.shape[0], key.shape[2], value.shape[2], key.dtype)
        return query.new_zeros(query.shape[1], query.shape[0], value.shape[2])
