"""Properties of scheduler, page allocator and prefix cache, with a fake runner and no model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from engine.core.scheduling.prompt_budget import PromptBudget
from engine.core.scheduling.scheduler import Scheduler
from engine.execution.batch_sizes import BatchSizes
from engine.execution.kv_cache import KVCache, KVShape
from engine.execution.modules.adapter_cache import AdapterCache
from engine.execution.modules.lora import Loras
from engine.requests.outputs import RequestOutput
from engine.requests.prompt import Prompt
from engine.requests.request import Request, SequenceState, Status
from engine.sampling.settings import SamplingParams
from schema.errors import TaskArgsInvalid

PAGE, CHUNK, MAX_SEQUENCES, MAX_ROWS = 4, 8, 6, 24
ALL_SIZES = (2, 4, 6, 8, 12, 16, 20, MAX_ROWS)
SIZES = BatchSizes(ALL_SIZES, ALL_SIZES, MAX_SEQUENCES, can_mix_prefill_and_decode=True)


class _Text:
    """A detokenizer that needs no tokenizer."""

    stopped = False

    def push(self, token_id: int) -> str:
        return str(token_id)

    def flush(self) -> str:
        return ""


@dataclass
class Job:
    prompt: list[int]
    max_new: int
    sequences: int
    fallback: bool
    cancel_after: int | None  # steps
    outputs: list[RequestOutput] = field(default_factory=list)

    def request(self) -> Request:
        hf = GenerationConfig(num_beams=1)
        rules = SamplingParams(hf, self.max_new, self.sequences, frozenset(), (), not self.fallback)
        texts = [cast(Any, _Text()) for _ in range(self.sequences)]
        answers = [SequenceState(index, text) for index, text in enumerate(texts)]
        return Request(Prompt(tuple(self.prompt)), rules, 0, answers, self.outputs.append)


jobs = st.lists(
    st.builds(
        Job,
        # Few different tokens, so that prompts begin alike.
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=40),
        max_new=st.integers(1, 12),
        sequences=st.integers(1, 3),
        fallback=st.sampled_from([False] * 9 + [True]),
        cancel_after=st.one_of(st.none(), st.integers(0, 20)),
    ),
    min_size=1,
    max_size=25,
)


class FakeLoop:
    """The steps of `engine.core.loop` with a runner that computes nothing.

    In place of keys it writes each token's id, so that a page with the wrong content shows.
    """

    def __init__(self, num_pages: int, max_wait_steps: int | None = None) -> None:
        self.now = 0.0
        shape = KVShape(1, 1, 1, torch.float32)
        self.cache = KVCache(
            {0: shape}, num_pages=num_pages, page_size=PAGE, device=torch.device("cpu")
        )
        self.scheduler = Scheduler(
            self.cache,
            AdapterCache({}, Loras(), 1),
            max_sequences=MAX_SEQUENCES,
            prefill_chunk=CHUNK,
            budget=PromptBudget(SIZES, max_wait_steps, clock=lambda: self.now),
            max_exclusive_tokens=1000,
        )
        self.admitted: list[Request] = []

    def step(self) -> None:
        scheduler = self.scheduler
        while request := scheduler.admit():
            self.admitted.append(request)
            if not request.settings.batched:
                for answer in request.sequences:
                    for _ in range(request.settings.max_new_tokens):
                        request.accept(answer, 7)
                request.emit([])
        step = scheduler.budget.begin()
        batched = [request for request in scheduler.running if request.settings.batched]
        assert sum(len(request.sequences) for request in batched) <= MAX_SEQUENCES
        streams = [r for r in batched if r.status == Status.DECODE]
        beside = sum(len(r.running) for r in streams)
        chunks = scheduler.prefill_chunks()
        prompt_rows = sum(chunk.num_tokens for chunk in chunks)
        assert prompt_rows <= MAX_ROWS
        if len(chunks) > 1:  # one that does not fit beside the others runs apart
            assert beside + prompt_rows <= MAX_ROWS
        self.now += self.seconds(beside, prompt_rows)
        self.took(beside, [chunk.num_tokens for chunk in chunks])
        for chunk in chunks:
            self._prefill(chunk)
        for request in {id(token.owner): token.owner for token in scheduler.decoding()}.values():
            for answer in request.running:
                self._decode(request, answer)
            request.emit([])
        scheduler.budget.end(step)
        scheduler.drop_finished()
        scheduler.check_integrity()

    def seconds(self, streams: int, prompt_rows: int) -> float:
        """What a step takes, of a clock that nothing else moves."""
        return 1.0

    def took(self, streams: int, chunks: list[int]) -> None:
        """A step has these rows."""

    def _write(self, pages: list[int], position: int, token: int) -> None:
        self.cache.layers[0].keys[self.cache.slots(pages, position, position + 1)] = token

    def read(self, pages: list[int], length: int) -> list[int]:
        keys = self.cache.layers[0].keys[self.cache.slots(pages, 0, length)]
        return [int(token) for token in keys.flatten()]

    def _prefill(self, chunk: Any) -> None:
        request = chunk.request
        assert chunk.start % CHUNK == 0  # always cut at the same places
        assert chunk.stop == request.prompt_tokens or chunk.stop % CHUNK == 0
        pages = request.sequences[0].pages
        for position in range(chunk.start, chunk.stop):
            self._write(pages, position, request.prompt.token_ids[position])
        request.num_prefilled = chunk.stop
        if not chunk.completes_prompt:
            return
        self.scheduler.prefilled(request)
        for answer in request.sequences:
            if answer.index:
                self.cache.copy(pages, answer.pages, 0, request.prompt_tokens)
            request.accept(answer, 100 * request.id + answer.index)
        request.status = Status.DECODE
        request.emit([])

    def _decode(self, request: Request, answer: SequenceState) -> None:
        """Write the last token and check that everything before it is this sequence's own."""
        length = request.prompt_tokens + len(answer.token_ids)
        self._write(answer.pages, length - 1, answer.token_ids[-1])
        assert self.read(answer.pages, length) == [*request.prompt.token_ids, *answer.token_ids]
        request.accept(answer, 100 * request.id + answer.index)


@settings(max_examples=150, deadline=None)
@given(jobs=jobs, num_pages=st.integers(14, 60), max_wait_steps=st.sampled_from([None, 1, 3, 50]))
def test_every_task_ends_and_no_page_is_lost_or_shared(
    jobs: list[Job], num_pages: int, max_wait_steps: int | None
) -> None:
    loop = FakeLoop(num_pages, max_wait_steps)
    accepted: list[tuple[Job, Request]] = []
    for job in jobs:
        request = job.request()
        try:
            loop.scheduler.check_fits(request)
        except TaskArgsInvalid:
            pages = loop.cache.pages_for(request.worst_case_tokens)
            assert pages * job.sequences > num_pages
            continue
        loop.scheduler.waiting.append(request)
        accepted.append((job, request))

    # A chunk waits for three steps at most, and every other step decodes.
    most = sum(len(job.prompt) + job.max_new + 5 for job, _ in accepted)
    for step in range(most + 1):
        for job, request in accepted:
            if job.cancel_after == step:
                request.cancel()
        loop.scheduler.drop_finished()
        loop.step()
        if not loop.scheduler.running and not loop.scheduler.waiting:
            break

    # Every task ended, and its last output says so, once.
    for job, _ in accepted:
        ends = [output.done or output.error is not None for output in job.outputs]
        assert ends.count(True) == 1
        assert ends[-1]
        if job.cancel_after is None:
            assert job.outputs[-1].completion_tokens == job.sequences * job.max_new
    # First come, first served.
    order = [request.id for request in loop.admitted]
    assert order == sorted(order)
    # All pages are free, or kept as known prefixes.
    kept = loop.scheduler.prefixes.kept_pages
    assert loop.cache.num_free_pages + len(kept) == num_pages
    assert len(set(kept)) == len(kept)
    loop.scheduler.prefixes.evict(num_pages)
    assert loop.cache.num_free_pages == num_pages
