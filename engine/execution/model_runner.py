"""Packs a batch to a verified shape, runs the HuggingFace module on it, returns logits.

A forward has T rows, one token each, of any number of sequences: ``input_ids`` [1, T] and
``position_ids`` [1, T], or [3, 1, T] (`engine.vision.features`). T is always one of the
`BatchSizes`; padding rows fill up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch.nn.functional import pad

from engine.execution.attention.interface import (
    MEASURED,
    PACKED,
    Attend,
    AttentionBackend,
    Batch,
    PlacedBatch,
    ShapeRecorder,
    attending,
)
from engine.execution.attention.packing import positions
from engine.execution.batch_sizes import BatchSizes
from engine.execution.cuda_graphs import DecodeGraphs
from engine.execution.kv_cache import KVCache, KVShape
from engine.execution.modules.experts import mixtures, real_rows
from engine.execution.modules.long_rope import row_lengths
from engine.execution.modules.lora import loras
from engine.execution.modules.recurrence.forward import computing
from engine.execution.modules.recurrence.states import StateCache, StateRecorder, StateShape
from engine.execution.operations import ONE_RANK, Ranks
from engine.execution.prompt_scores import ScoredRows, body_runs_once, scored_rows
from engine.loading.loaded_model import LoadedModel
from engine.platform.platforms import platform_of
from engine.platform.transfer import upload
from engine.requests.request import ScheduledTokens
from engine.vision.features import Features, Vision, joined


class Shapes(NamedTuple):
    """What a model keeps of sequences.

    Attributes:
        keys_and_values: of each layer with attention, for one token.
        states: of recurrent layers, for one sequence, in the order of a forward.
    """

    keys_and_values: dict[int, KVShape]
    states: list[StateShape]


@torch.inference_mode()
def measured_shapes(loaded: LoadedModel) -> Shapes:
    """What is kept in every layer, seen in a forward of one token.

    Raises:
        UnsupportedAttentionError: the model needs attention that no backend computes.
    """
    recorder = ShapeRecorder()
    zero = torch.zeros(1, 1, dtype=torch.long, device=loaded.device)
    states = StateRecorder()
    with plain_attention(loaded, MEASURED), attending(recorder), computing(states):
        loaded.model(input_ids=zero, position_ids=zero, use_cache=False)
    return Shapes(recorder.shapes, states.shapes)


@contextmanager
def plain_attention(loaded: LoadedModel, implementation: str | None = None) -> Iterator[None]:
    """The model's own attention, for `generate` and as a reference; or another of transformers'."""
    _set_attention(loaded, implementation or loaded.own_attention)
    try:
        yield
    finally:
        _set_attention(loaded, PACKED)


def _set_attention(loaded: LoadedModel, implementation: str) -> None:
    """Switch the language model's attention; vision towers keep their own."""
    loaded.model.get_decoder().set_attn_implementation(implementation)


@dataclass(frozen=True)
class Forward:
    """The arguments of `ModelRunner.forward`, and rows that are scored beside."""

    token_ids: torch.Tensor
    scheduled: Sequence[ScheduledTokens]
    num_rows: int
    keep: Sequence[int]
    num_keep: int
    decode: bool
    scored: Sequence[ScoredRows] = ()

    def run(self, runner: ModelRunner) -> ForwardOutput:
        """Run this rank's part."""
        return runner.outputs(self)


class ForwardOutput(NamedTuple):
    """What a forward gives.

    Attributes:
        logits: float32 [len(keep), vocab]; the next forward may overwrite them.
        scores: of each `ScoredRows`, as `Logprobs.of` reports them.
    """

    logits: torch.Tensor
    scores: Sequence[torch.Tensor]


@dataclass(frozen=True)
class PlainForward:
    """The arguments of `ModelRunner.plain_logits`."""

    token_ids: Sequence[int]

    def run(self, runner: ModelRunner) -> torch.Tensor:
        """Run this rank's part."""
        return runner.own_logits(self)


class ModelRunner:
    """Runs forwards with one attention backend. Belongs to the engine's thread.

    It is built once all that it needs is known, and never changes: to try another backend, build
    another one. Of a split model every rank has one.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        backend: AttentionBackend,
        cache: KVCache,
        states: StateCache,
        *,
        max_pages: int,
        image_cache_bytes: int = 0,
        ranks: Ranks = ONE_RANK,
    ) -> None:
        """Make a runner.

        Args:
            loaded: the model, or this rank's part of it.
            backend: what computes attention.
            cache: where keys and values are kept.
            states: where recurrent layers keep theirs.
            max_pages: pages of the longest sequence.
            image_cache_bytes: what is kept of images, as features on the device.
            ranks: all that have a part of the model.
        """
        self.backend = backend
        self.cache = cache
        self.states = states
        self.device = loaded.device
        self.vision = Vision(loaded, image_cache_bytes)
        self.loaded = loaded
        self.ranks = ranks
        self._float_logits = platform_of(loaded.device).float_copier()
        self._real_rows = real_rows(loaded.model)
        self._row_lengths = row_lengths(loaded.model)
        self._loras = loras(loaded.model)
        self._graphs: DecodeGraphs | None = None
        # A graph has the kernels of one device, and the model's forward cannot be cut where the
        # device changes. Models that are spread are large: reading their weights takes longer than
        # launching their kernels one by one.
        # The rows of an expert are counted on the host, the factors of long sequences and the
        # adapters of rows chosen, and the rows of states assigned.
        by_host = bool(mixtures(loaded.model)) or self._row_lengths.limit is not None
        by_host = by_host or bool(loaded.adapters) or bool(states)
        if backend.captures_decode and loaded.spread is None and not by_host:
            self._graphs = DecodeGraphs(
                self._decode_logits, backend, cache, max_pages=max_pages, axes=self.vision.axes
            )

    @property
    def replays_decode(self) -> bool:
        """Whether decode steps are replayed from graphs."""
        return self._graphs is not None

    # --- On all ranks ----------------------------------------------------------------------------

    def step(
        self, batch: Sequence[ScheduledTokens], sizes: BatchSizes
    ) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
        """Prefill chunks of prompts and decode tokens of other sequences, at once.

        Args:
            batch: tokens of requests, those of prompts first; both kinds only if the batch sizes
                can mix them.
            sizes: at which the forward may run.

        Returns:
            Logits [last chunks of prompts and decode rows, vocab], in order; and for each chunk of
            a prompt the scores of the prompt's tokens that it predicts, where they are wanted.
        """
        chunks = [tokens for tokens in batch if tokens.of_prompt]
        decoding = batch[len(chunks) :]
        prompts = [t for c in chunks for t in c.owner.prompt.token_ids[c.start : c.stop]]
        ends = accumulate(chunk.num_tokens for chunk in chunks)
        keep = [end - 1 for end, chunk in zip(ends, chunks, strict=True) if chunk.completes_prompt]
        keep += range(len(prompts), len(prompts) + len(decoding))
        token_ids = [upload(prompts, self.device)] if prompts else []
        if decoding:
            token_ids.append(self._decoded(decoding))
        # The head runs at a decode size in all kinds of forward, so that the first token's logits
        # come from the same kernels as all others.
        num_keep = sizes.for_decode(len(keep))
        num_rows = len(prompts) + len(decoding)
        scored = [scored_rows(chunks, n, sizes) for n in range(len(chunks))]
        output = self.ranks.run(
            Forward(
                torch.cat(token_ids),
                [*map(self._with_features, chunks), *decoding],
                num_rows=sizes.for_prefill(num_rows) if chunks else num_keep,
                keep=keep,
                num_keep=num_keep,
                decode=not chunks,
                scored=[rows for of_chunk in scored for rows in of_chunk],
            ),
            self,
        )
        scores = iter(output.scores)
        of_chunks = [[next(scores) for _ in of_chunk] for of_chunk in scored]
        return output.logits, [torch.cat(parts) if parts else None for parts in of_chunks]

    def _decoded(self, decoding: Sequence[ScheduledTokens]) -> torch.Tensor:
        """The tokens of decode rows: drafts are known to the host, last tokens to the device."""
        drafts = [tokens.draft for tokens in decoding]
        rows = [row for row, draft in enumerate(drafts) if draft is None]
        sampled = [t.sequence.last_token for t in decoding if t.sequence and not t.ahead]
        # An id that is not a token (`engine.sampling.sampler`) ends its task, but later.
        last = torch.stack([t for t in sampled if t is not None]).clamp_(min=0)
        if len(rows) == len(decoding):
            return last
        token_ids = upload([draft or 0 for draft in drafts], self.device)
        return token_ids.index_copy_(0, upload(rows, self.device), last)

    def forward(
        self,
        token_ids: torch.Tensor,
        scheduled: Sequence[ScheduledTokens],
        *,
        num_rows: int,
        keep: Sequence[int],
        num_keep: int,
        decode: bool = False,
    ) -> torch.Tensor:
        """Run the module on a packed batch.

        Args:
            token_ids: [at most ``num_rows``], on the device.
            scheduled: where these tokens belong.
            num_rows: rows of the forward; the rest is padding.
            keep: rows whose logits are wanted.
            num_keep: rows that the language model head runs on; the rest is padding.
            decode: each sequence has a single token, and ``num_keep`` is ``num_rows``.

        Returns:
            float32 logits [len(keep), vocab]; the next forward may overwrite them.
        """
        forward = Forward(token_ids, scheduled, num_rows, list(keep), num_keep, decode)
        return self.ranks.run(forward, self).logits

    def plain_logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """The model's own forward on a whole prompt, float32 [tokens, vocab]; a reference."""
        return self.ranks.run(PlainForward(list(token_ids)), self)

    # --- On this rank ----------------------------------------------------------------------------

    @torch.inference_mode()
    def outputs(
        self, forward: Forward, watched: Callable[[Attend], Attend] | None = None
    ) -> ForwardOutput:
        """See `forward` and `step`.

        Args:
            forward: what to run.
            watched: puts something around what computes attention. Then no graph is replayed.
        """
        scheduled, num_rows = forward.scheduled, forward.num_rows
        num_wanted = len(forward.keep)
        keep = [*forward.keep, *[0] * (forward.num_keep - num_wanted)]
        if self._graphs is not None and forward.decode and watched is None:
            logits = self._graphs.logits(forward.token_ids, scheduled, num_rows, keep)
            return ForwardOutput(logits[:num_wanted], ())
        ids = pad(forward.token_ids, (0, num_rows - len(forward.token_ids)))
        features: list[Features] = []
        row = stop = 0
        for tokens in scheduled:
            row += tokens.num_tokens
            if tokens.features is not None:
                features.append(tokens.features)
                stop = row
        inputs = self.vision.inputs(ids[None], joined(features) if features else None, stop)
        places = upload(positions(scheduled, num_rows, self.vision.axes), self.device)
        batch = self._placed(
            self.backend.batch(self.cache, scheduled, num_rows, decode=forward.decode)
        )
        attend = watched(batch) if watched else batch

        def logits_of(rows: Sequence[int]) -> torch.Tensor:
            return self._model_logits(inputs, places, upload(rows, self.device), attend)

        real = self._real_rows.limited_to(len(forward.token_ids))
        adapted = self._loras.of(scheduled, num_rows)
        lengths = self._row_lengths.of(scheduled, num_rows)
        with real, lengths, adapted, self.states.running(scheduled):
            if not forward.scored:
                return ForwardOutput(logits_of(keep)[:num_wanted], ())
            with body_runs_once(self.loaded.model):
                scores = [rows.scores(logits_of, self.device) for rows in forward.scored]
                return ForwardOutput(logits_of(keep)[:num_wanted], scores)

    @torch.inference_mode()
    def own_logits(self, forward: PlainForward) -> torch.Tensor:
        """See `plain_logits`."""
        ids = torch.tensor([list(forward.token_ids)], device=self.device)
        with plain_attention(self.loaded):
            logits: torch.Tensor = self.loaded.model(input_ids=ids, use_cache=False).logits
        return logits[0].float()

    def _decode_logits(
        self, token_ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor, batch: Batch
    ) -> torch.Tensor:
        inputs = self.vision.inputs(token_ids[None], None, 0)
        return self._model_logits(inputs, positions, keep, batch)

    def _model_logits(
        self,
        inputs: dict[str, Any],
        positions: torch.Tensor,  # [axes, T]
        keep: torch.Tensor,
        batch: Attend,
    ) -> torch.Tensor:
        """float32 logits [len(keep), vocab]."""
        with attending(batch):
            output = self.loaded.model(
                **inputs,
                position_ids=positions if len(positions) == 1 else positions[:, None],
                logits_to_keep=keep,
                use_cache=False,
            )
        return self._float_logits(output.logits[0])

    def _placed(self, batch: Batch) -> Attend:
        """The batch for all layers; each device gets its part once."""
        spread = self.loaded.spread
        if spread is None:
            return batch
        first, *others = spread.stages
        parts = [(first, batch), *((stage, batch.on(stage.device)) for stage in others)]
        return PlacedBatch({n: part for stage, part in parts for n in stage.layers})

    def _with_features(self, chunk: ScheduledTokens) -> ScheduledTokens:
        """A chunk of a prompt with the image features of the image tokens in it."""
        request = chunk.owner
        if request.features is None:
            return chunk
        ids, image_token = request.prompt.token_ids, self.loaded.image_token_id
        before = ids[: chunk.start].count(image_token) - request.features_skipped
        within = ids[chunk.start : chunk.stop].count(image_token)
        if not within and request.features.indicators is None:
            return chunk
        return replace(chunk, features=request.features.part(before, before + within))
