"""Packs a batch to a verified shape, runs the HuggingFace module on it, returns logits.

A forward has T rows, one token each, of any number of sequences: ``input_ids`` [1, T] and
``position_ids`` [1, T], or [3, 1, T] (`features`). T is always one of the row counts of
`BatchSizes`; padding rows fill up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn.functional import pad

from engine.execution.attention.packing import ScheduledTokens, positions
from engine.execution.attention.paged import (
    PAGED,
    Attend,
    PagedBatch,
    PlacedBatch,
    ShapeRecorder,
    paged_batch,
)
from engine.execution.attention.varlen import VarlenBatch, varlen_batch
from engine.execution.batch_sizes import BatchSizes
from engine.execution.cuda_graphs import DecodeGraphs
from engine.execution.kv_cache import KVCache, KVShape
from engine.loading.loaded_model import LoadedModel
from engine.platform.platforms import platform_of
from engine.platform.transfer import upload
from engine.requests.request import Request, SequenceState
from engine.vision.features import Features, Vision, joined


@dataclass(frozen=True)
class PrefillChunk:
    """Prompt tokens ``start .. stop`` of a request, to be prefilled in one forward."""

    request: Request
    start: int
    stop: int

    @property
    def is_last(self) -> bool:
        """Whether the prompt is complete after this chunk."""
        return self.stop == self.request.prompt_tokens


class Runner:
    """Runs forwards. Belongs to the engine's thread."""

    def __init__(self, loaded: LoadedModel, image_cache_bytes: int = 0) -> None:
        self._model = loaded.model
        self._image_token_id = loaded.image_token_id
        self.vision = Vision(loaded.model, loaded.image_token_id, image_cache_bytes)
        # What transformers chose for this model: not all of them can run sdpa.
        self.own_attention: str = self._model.get_decoder().config._attn_implementation
        self.device = loaded.device
        self._spread = loaded.spread
        self._cache: KVCache | None = None
        self._paged_kernel = False
        self._graphs: DecodeGraphs | None = None
        self._max_rows = 0
        self._float_logits = platform_of(loaded.device).float_copier()

    @property
    def cache(self) -> KVCache:
        """The KV cache; set by `use_cache`."""
        assert self._cache is not None
        return self._cache

    @property
    def decodes_apart(self) -> bool:
        """Whether a decode step runs other kernels than a prefill of as many rows."""
        return self._paged_kernel

    def make_cache(
        self, shapes: Mapping[int, KVShape], *, num_pages: int, page_size: int
    ) -> KVCache:
        """A KV cache on the device; of a spread model, each layer's on its own."""
        return KVCache(
            shapes,
            num_pages=num_pages,
            page_size=page_size,
            device=self.device,
            layer_devices=self._spread.layer_devices if self._spread else None,
        )

    def check_health(self) -> None:
        """Raise if forwards can run no more; on any thread."""

    def close(self) -> None:
        """End what runs forwards beside this process. Idempotent."""

    def kv_room(self, device: torch.device) -> int | None:
        """Bytes that a KV cache may take on a device; None where the host decides."""
        return platform_of(device).kv_room(device)

    def use_cache(self, cache: KVCache) -> None:
        """Give the runner its KV cache; attention is computed sequence by sequence."""
        self._cache = cache
        self._paged_kernel = False
        self._graphs = None

    def use_paged_kernel(self, cache: KVCache, *, max_pages: int, max_rows: int) -> None:
        """Give the runner its KV cache; a paged kernel computes attention (`varlen`).

        Args:
            cache: the cache.
            max_pages: pages of the longest sequence.
            max_rows: rows of the largest forward.
        """
        self._cache = cache
        self._paged_kernel = True
        # A graph has the kernels of one device, and the model's forward cannot be cut where the
        # device changes. Models that are spread are large: reading their weights takes longer than
        # launching their kernels one by one.
        if self._spread is None:
            self._graphs = DecodeGraphs(self._decode_forward, cache, max_pages, self.vision.axes)
        self._max_rows = max_rows

    @torch.inference_mode()
    def kv_shapes(self) -> dict[int, KVShape]:
        """The KV shape of every layer, seen in a forward of one token."""
        recorder = ShapeRecorder()
        zero = torch.zeros(1, 1, dtype=torch.long, device=self.device)
        self.set_attention(PAGED)
        self._model(input_ids=zero, position_ids=zero, use_cache=False, batch=recorder)
        return recorder.shapes

    def set_attention(self, implementation: str) -> None:
        """Switch the language model's attention; vision towers keep their own."""
        self._model.get_decoder().set_attn_implementation(implementation)

    def step(
        self,
        chunks: Sequence[PrefillChunk],
        decoding: Sequence[tuple[Request, SequenceState]],
        counts: BatchSizes,
    ) -> torch.Tensor:
        """Prefill chunks of different requests and decode one token of every sequence, at once.

        Args:
            chunks: may be none, as may be ``decoding``; both only if the batch sizes can mix them.
            decoding: sequences with the requests that they belong to.
            counts: at which the forward may run.

        Returns:
            Logits [last chunks of prompts and sequences, vocab], in order.
        """
        prompts = [t for c in chunks for t in c.request.prompt.token_ids[c.start : c.stop]]
        pieces = [self._chunk_piece(chunk) for chunk in chunks]
        ends = accumulate(piece.num_tokens for piece in pieces)
        keep = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.is_last]
        keep += range(len(prompts), len(prompts) + len(decoding))
        token_ids = [upload(prompts, self.device)] if prompts else []
        for request, sequence in decoding:
            start = request.prompt_tokens + sequence.num_sampled - 1
            pieces.append(ScheduledTokens(start, 1, sequence.pages, rotary=request.rotary))
        if decoding:
            picked = [sequence.last_token for _, sequence in decoding]
            # What is not a token (`engine.sampling.sampler`) ends its task, but later.
            token_ids.append(torch.stack([t for t in picked if t is not None]).clamp_(min=0))
        # The head runs at a decode count in all kinds of forward, so that the first token's logits
        # come from the same class as all others.
        num_keep = counts.for_decode(len(keep))
        num_rows = len(prompts) + len(decoding)
        return self.forward(
            torch.cat(token_ids),
            pieces,
            num_rows=counts.for_prefill(num_rows) if chunks else num_keep,
            keep=keep,
            num_keep=num_keep,
            decode=not chunks,
        )

    @torch.inference_mode()
    def forward(
        self,
        token_ids: torch.Tensor,
        pieces: Sequence[ScheduledTokens],
        *,
        num_rows: int,
        keep: Sequence[int],
        num_keep: int,
        decode: bool = False,
    ) -> torch.Tensor:
        """Run the module on packed pieces.

        Args:
            token_ids: [at most ``num_rows``], on the device: the pieces' tokens.
            pieces: where they belong.
            num_rows: rows of the forward; the rest is padding.
            keep: rows whose logits are wanted.
            num_keep: rows that the language model head runs on; the rest is padding.
            decode: the pieces are single tokens, and ``num_keep`` is ``num_rows``.

        Returns:
            float32 logits [len(keep), vocab]; the next forward may overwrite them.
        """
        kept = [*keep, *[0] * (num_keep - len(keep))]
        if self._graphs is not None and decode:
            return self._graphs.logits(token_ids, pieces, num_rows, kept)[: len(keep)]
        ids = pad(token_ids, (0, num_rows - len(token_ids)))
        features: list[Features] = []
        row = stop = 0
        for piece in pieces:
            row += piece.num_tokens
            if piece.features is not None:
                features.append(piece.features)
                stop = row
        logits = self._run(
            self.vision.inputs(ids[None], joined(features) if features else None, stop),
            upload(positions(pieces, num_rows, self.vision.axes), self.device),
            upload(kept, self.device),
            self._batch(pieces, num_rows, 1 if decode else self._max_rows),
        )
        return logits[: len(keep)]

    def _batch(self, pieces: Sequence[ScheduledTokens], num_rows: int, max_rows: int) -> Attend:
        """The pieces as attention takes them; what a device needs of them goes there once."""
        batch: PagedBatch | VarlenBatch
        if self._paged_kernel:
            batch = varlen_batch(self.cache, pieces, num_rows, max_rows)
        else:
            batch = paged_batch(self.cache, pieces)
        if self._spread is None:
            return batch
        first, *others = self._spread.stages
        parts = [(first, batch), *((stage, batch.on(stage.device)) for stage in others)]
        return PlacedBatch({n: part for stage, part in parts for n in stage.layers})

    def _run(
        self,
        inputs: dict[str, Any],
        positions: torch.Tensor,  # [axes, T]
        keep: torch.Tensor,
        batch: Attend,
    ) -> torch.Tensor:
        """float32 logits [len(keep), vocab]."""
        output = self._model(
            **inputs,
            position_ids=positions if len(positions) == 1 else positions[:, None],
            logits_to_keep=keep,
            use_cache=False,
            batch=batch,
        )
        return self._float_logits(output.logits[0])

    def _decode_forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        keep: torch.Tensor,
        batch: VarlenBatch,
    ) -> torch.Tensor:
        return self._run(self.vision.inputs(token_ids[None], None, 0), positions, keep, batch)

    @torch.inference_mode()
    def plain_logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """The model's own forward on a whole prompt, float32 [tokens, vocab]; for the lane
        check.
        """
        ids = torch.tensor([list(token_ids)], device=self.device)
        logits: torch.Tensor = self._model(input_ids=ids, use_cache=False).logits
        return logits[0].float()

    def _chunk_piece(self, chunk: PrefillChunk) -> ScheduledTokens:
        request, start, stop = chunk.request, chunk.start, chunk.stop
        return ScheduledTokens(
            start,
            stop - start,
            request.sequences[0].pages,
            self._chunk_features(chunk),
            request.rotary,
            [(a, b) for a, b in request.prompt.bidirectional_spans if start <= a and b <= stop],
        )

    def _chunk_features(self, chunk: PrefillChunk) -> Features | None:
        """The image features of the image tokens within a chunk."""
        request = chunk.request
        if request.features is None:
            return None
        ids = request.prompt.token_ids
        before = ids[: chunk.start].count(self._image_token_id) - request.features_skipped
        within = ids[chunk.start : chunk.stop].count(self._image_token_id)
        return request.features.part(before, before + within) if within else None
