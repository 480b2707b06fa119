"""Runs what the scheduler has admitted: prefill, decode, sampling, and isolation of failures.

A step has two halves. `Execution.launch` makes the device compute the next tokens; it does not need
to know the last ones, which stay on the device. `Execution.finish` waits for tokens, and turns them
into text. On CUDA the next step is launched before the last one is finished, so that the device
never waits for Python; on a CPU, which runs nothing asynchronously, a step is finished at once.

A sequence that turns out to have ended has then been decoded once too often. The extra token is
dropped; its keys and values went to pages that its task had reserved.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain

import torch

from engine.core.build import Assembly
from engine.core.draw import Drawing, Wanted
from engine.core.faults import fail_on_error, parts_of
from engine.core.generate_fallback import run_generate_fallback
from engine.core.in_flight import DrawnTokens, InFlight, Proposed, Row, ScoredChunk
from engine.core.scheduling.scheduler import Scheduler
from engine.core.speculation.guesser import Guesser
from engine.core.speculation.speculation import Speculation
from engine.execution.batch_sizes import BatchSizes
from engine.execution.model_runner import plain_attention
from engine.execution.modules.lora import loras
from engine.platform.transfer import AsyncCopy, upload
from engine.requests.request import Request, ScheduledTokens, Status
from engine.sampling.beam_search import BeamSearch
from engine.sampling.sampler import Sampler
from engine.vision.features import Features

logger = logging.getLogger(__name__)


class Execution:
    """Runs steps. Belongs to the engine's thread.

    Attributes:
        speculation: adds drafts to decode steps.
        num_decode_steps: forwards that decoded, so far.
    """

    def __init__(self, assembly: Assembly, scheduler: Scheduler, *, lookahead: bool) -> None:
        self._loaded = assembly.loaded
        self._executor = assembly.executor
        self._batching = assembly.batching
        self._adapters = assembly.adapters
        self._loras = loras(assembly.loaded.model)
        self._scheduler = scheduler
        self._lookahead = lookahead
        guesser = Guesser() if assembly.card["speculation"] == "on" else None
        self.speculation = Speculation(
            self._batching.batch_sizes,
            guesser,
            vocab_size=self._loaded.model.config.get_text_config().vocab_size,
            image_token_id=self._loaded.image_token_id,
        )
        self._drawing = Drawing(self.speculation, lookahead=lookahead)
        self.num_decode_steps = 0

    @property
    def batch_sizes(self) -> BatchSizes:
        """At which batch sizes forwards may run; used for batched requests only."""
        assert self._batching.batch_sizes is not None
        return self._batching.batch_sizes

    # --- The beginning of a request --------------------------------------------------------------

    def joins(self, requests: Sequence[Request], waiting: Request) -> bool:
        """Whether a waiting request brings images that are encoded together with those of others.

        If it brings none it waits until the others have begun: perhaps it begins as they do.
        """
        tiles = self._batching.tiles
        if tiles is None or not all(r.settings.batched for r in (*requests, waiting)):
            return False
        missing = self._batching.runner.vision.missing
        known = missing(image for request in requests for image in request.prompt.images)
        more = missing([*known, *waiting.prompt.images])
        return len(more) > len(known) and tiles.fit(more)

    def start(self, requests: Sequence[Request]) -> None:
        """Make admitted requests ready for their steps; one for the fallback runs here."""
        encoded = self._encoded_together(requests)
        for request in requests:
            self._start(request, encoded)

    def _encoded_together(self, requests: Sequence[Request]) -> dict[bytes, Features]:
        """Features of images that these requests need, of those that could share a forward.

        If that fails, each request encodes its own images, so that only the faulty one ends.
        """
        tiles, vision = self._batching.tiles, self._batching.runner.vision
        if tiles is None:
            return {}
        needed = (
            vision.needed(request.prompt.token_ids, request.prompt.images, request.num_prefilled)
            for request in requests
        )
        try:
            return vision.encode_together(chain.from_iterable(needed), tiles)
        except torch.AcceleratorError:
            with fail_on_error(requests):
                raise
        except Exception as error:  # noqa: BLE001 - any error: one image may be its cause
            logger.warning("images encoded together failed, they follow one by one: %r", error)
        return {}

    def _start(self, request: Request, encoded: dict[bytes, Features]) -> None:
        """See `start`; ``encoded`` are features by the digests of images."""
        with fail_on_error([request]):
            self._adapters.load(request.adapter)
            vision = self._batching.runner.vision
            prompt = request.prompt
            request.features, request.features_skipped = vision.encode(
                prompt.token_ids, prompt.images, request.num_prefilled, encoded
            )
            if not request.settings.batched:
                with plain_attention(self._loaded), self._loras.alone(request.adapter):
                    inputs = vision.generate_inputs(
                        prompt.token_ids, prompt.images, request.features
                    )
                    run_generate_fallback(self._loaded, request, inputs)
                return
            request.rotary = vision.rotary(prompt.token_ids, prompt.images)
            task = (
                self._loaded.model,
                request.settings,
                prompt.token_ids,
                request.seed,
                self._loaded.device,
            )
            if request.settings.num_beams > 1:
                fresh = request.sequences[0].detokenizer
                text = fresh.fork() if request.settings.stop_strings else None
                request.beams = BeamSearch(*task, text)
            else:
                constrained = request.sequences[0].matcher is not None
                request.sampler = Sampler(*task, constrained=constrained, traced=request.is_traced)

    # --- A step ----------------------------------------------------------------------------------

    def launch(self) -> list[InFlight]:
        """Prefill chunks of new prompts and decode a token of every running sequence.

        In one forward where that gives the same bits: it reads the weights once, and the products
        of a few decode rows, which are bound by memory, become part of larger ones that are not.
        """
        chunks = self._scheduler.prefill_chunks()
        decoding = self._scheduler.decoding()
        if chunks and self._share_a_forward(chunks, decoding):
            return self._isolated([*chunks, *self._with_drafts(decoding, chunks)])
        if not chunks:
            return self._isolated(self._with_drafts(decoding))
        launched = self._isolated(chunks)
        decoding = self._scheduler.decoding()
        if not self._lookahead:
            # First tokens of prompts that are complete now are told before their next step.
            began = {chunk.owner for chunk in chunks}
            decoding = [tokens for tokens in decoding if tokens.owner not in began]
        return [*launched, *self._isolated(self._with_drafts(decoding))]

    def _share_a_forward(
        self, chunks: Sequence[ScheduledTokens], decoding: Sequence[ScheduledTokens]
    ) -> bool:
        """Whether these chunks of prompts and decode steps run in one forward."""
        if not decoding or not self.batch_sizes.can_mix_prefill_and_decode:
            return False
        if any(_places_itself(chunk.owner) for chunk in chunks):
            return False
        rows = sum(chunk.num_tokens for chunk in chunks) + len(decoding)
        return rows <= self.batch_sizes.prefill[-1]

    def _with_drafts(
        self, decoding: Sequence[ScheduledTokens], chunks: Sequence[ScheduledTokens] = ()
    ) -> Sequence[ScheduledTokens]:
        """The rows of a decode step, and of its drafts, in a forward with these chunks."""
        if not decoding:
            return decoding
        self.num_decode_steps += 1
        return self.speculation.with_drafts(
            decoding,
            num_prompts=sum(chunk.completes_prompt for chunk in chunks),
            prefill_rows=sum(chunk.num_tokens for chunk in chunks),
        )

    def finish(self, launched: InFlight) -> None:
        """Wait for tokens, append them to their sequences and report the new text."""
        if isinstance(launched, ScoredChunk):
            if launched.request.status < Status.FINISHED:
                with fail_on_error([launched.request]):
                    launched.finish()
            return
        if isinstance(launched, DrawnTokens):
            launched.wait()
            self._executor.check_health()  # else tokens may come from an exchange that broke off
            self._drawing.finish(launched)
            return
        candidates = launched.download.wait()
        self._executor.check_health()
        if launched.request.status < Status.FINISHED:
            with fail_on_error([launched.request]):
                self._advance_beams(launched.request, candidates)

    def _advance_beams(self, request: Request, candidates: torch.Tensor) -> None:
        """Choose the next beams among the candidates, and move their keys and values there."""
        assert request.beams is not None
        homes, copies = request.beams.advance(candidates)
        if request.beams.done:
            request.answer(request.beams.answers())
            return
        pages = [sequence.pages for sequence in request.sequences]
        stop = request.prompt_tokens + request.sequences[0].num_sampled
        for source, target, num_tokens in copies:
            self._batching.cache.copy(pages[source], pages[target], stop - num_tokens, stop)
        self._move_states(request, homes, {target: source for source, target, _ in copies})
        tokens = upload([beam.token for beam in request.beams.running], self._loaded.device)
        for sequence, home, token in zip(request.sequences, homes, tokens.unbind(), strict=True):
            sequence.pages = pages[home]
            sequence.last_token = token
            sequence.num_sampled += 1

    def _move_states(
        self, request: Request, homes: Sequence[int], copied: Mapping[int, int]
    ) -> None:
        """Give each beam the recurrent state of the one that it continues.

        Args:
            request: of a search that has just chosen.
            homes: for each beam, the sequence whose pages it gets.
            copied: of these sequences those that have got another one's last tokens: from which.
        """
        states = self._batching.states
        if not states:
            return
        rows = [
            s.state.row if s.state.row is None else states.share(s.state.row)
            for s in request.sequences
        ]
        for sequence, home in zip(request.sequences, homes, strict=True):
            num_tokens = sequence.state.num_tokens
            states.give(sequence.state, rows[copied.get(home, home)], num_tokens)
        for row in rows:
            if row is not None:
                states.drop(row)

    def _forward(self, batch: Sequence[ScheduledTokens]) -> list[InFlight]:
        """Run chunks of prompts and decode steps in one forward, and sample what follows."""
        logits, scores = self._batching.runner.step(batch, self.batch_sizes)
        chunk_scores = iter(scores)
        launched: list[InFlight] = []
        wanted: list[Wanted] = []
        row = 0
        for part in parts_of(batch):
            request = part[0].owner
            if not part[0].of_prompt:
                rows = [Row(t.sequence, t.ahead) for t in part if t.sequence is not None]
                own = logits[row : row + len(rows)]
                row += len(rows)
                if request.beams is None:
                    wanted.append(Wanted(request, rows, own))
                    continue
                with fail_on_error([request]):
                    launched.append(_proposed(request, own))
                continue
            request.num_prefilled = part[0].stop
            self._scheduler.prefilled(request)
            of_chunk, complete = next(chunk_scores), part[0].completes_prompt
            if request.scores_prompt:
                download = None if of_chunk is None else AsyncCopy(of_chunk)
                launched.append(ScoredChunk(request, download, complete))
            if complete:
                with fail_on_error([request]):
                    first = self._first(request, logits[row])
                    if isinstance(first, Proposed):
                        launched.append(first)
                    elif first is not None:
                        wanted.append(first)
                row += 1
        return [*launched, self._drawing.launch(wanted)] if wanted else launched

    def _first(self, request: Request, logits: torch.Tensor) -> Wanted | Proposed | None:
        """From a complete prompt to the first token of every sequence; ``logits`` [vocab].

        None for a request that generates nothing.
        """
        request.features = None  # not needed any more; frees memory of the device
        request.status = Status.DECODE
        if not request.settings.max_new_tokens:
            return None
        first, *others = request.sequences
        for other in others:  # each has its own copy of the prompt's keys and values
            self._batching.cache.copy(first.pages, other.pages, 0, request.prompt_tokens)
            self._batching.states.give(other.state, first.state.row, first.state.num_tokens)
        rows = logits.expand(len(request.sequences), -1)
        if request.beams is not None:
            return _proposed(request, rows)
        return Wanted(request, [Row(sequence) for sequence in request.sequences], rows)

    # --- Faults ----------------------------------------------------------------------------------

    def _isolated(self, batch: Sequence[ScheduledTokens]) -> list[InFlight]:
        """Run a batch; if that fails, run its members one by one, so that only the faulty one ends.

        A forward that failed has changed no request: what it wrote to their pages is written again.
        """
        launched: list[InFlight] = []
        parts = parts_of(batch)
        if len(parts) <= 1:  # no second try of the same forward
            for part in parts:
                with fail_on_error([part[0].owner]):
                    launched += self._forward(part)
            return launched
        try:
            launched += self._forward(batch)
        except torch.AcceleratorError:
            with fail_on_error([part[0].owner for part in parts]):
                raise
        except Exception as error:  # noqa: BLE001 - any error: one member may be its cause
            logger.warning("a batch of %d failed, its members follow alone: %r", len(parts), error)
            for part in parts:
                request = part[0].owner
                if request.status < Status.FINISHED:  # else an earlier chunk of it has failed
                    with fail_on_error([request]):
                        launched += self._forward(part)
        return launched


def _proposed(request: Request, logits: torch.Tensor) -> Proposed:
    assert request.beams is not None
    return Proposed(request, AsyncCopy(request.beams.candidates(logits)))


def _places_itself(request: Request) -> bool:
    """Whether the model itself finds the places of this request's images, by token ids.

    It would take a generated image token for an image; `Vision.inputs` does not.
    """
    return request.features is not None and request.features.placed_by_model
