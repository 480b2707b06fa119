"""Which tasks run: first come, first served, with the worst case of each reserved."""

from __future__ import annotations

from collections import deque

from engine.core.scheduling.prefix_cache import PrefixCache, chunk_keys
from engine.core.scheduling.prompt_budget import PromptBudget
from engine.execution.kv_cache import KVCache
from engine.execution.modules.adapter_cache import AdapterCache
from engine.execution.modules.recurrence.states import StateCache
from engine.requests.request import Request, ScheduledTokens, SequenceState, Status
from schema.errors import ContextLengthExceeded, Overloaded, TaskArgsInvalid

RETRY_AFTER_S = 1.0


class Scheduler:
    """Admission and the content of each step. Belongs to the engine's thread."""

    def __init__(
        self,
        cache: KVCache,
        adapters: AdapterCache,
        *,
        max_sequences: int,
        prefill_chunk: int,
        budget: PromptBudget,
        max_exclusive_tokens: int,
        long_after: int | None = None,
        states: StateCache | None = None,
        num_kept_states: int = 0,
    ) -> None:
        self._cache = cache
        self._states = states or StateCache([], 0)
        self._adapters = adapters
        self._long_after = long_after
        self._max_sequences = max_sequences
        self._prefill_chunk = prefill_chunk
        self.budget = budget
        self._max_exclusive_tokens = max_exclusive_tokens
        self.prefixes = PrefixCache(cache, prefill_chunk, self._states, num_kept_states)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []  # in order of admission

    def check_fits(self, request: Request) -> None:
        """Refuse a task that could never run.

        Raises:
            TaskArgsInvalid: more sequences or more KV tokens than the engine has at all.
        """
        needed = len(request.sequences) * self._cache.pages_for(request.worst_case_tokens)
        if not request.settings.batched:
            self._check_fallback(request)
            return
        if len(request.sequences) > self._max_sequences:
            name = "num_beams" if request.settings.num_beams > 1 else "num_return_sequences"
            raise TaskArgsInvalid(
                f"generation_config.{name} is {len(request.sequences)}; this model runs at most "
                f"{self._max_sequences} sequences at once",
                param=f"generation_config.{name}",
            )
        if needed > self._cache.num_pages:
            raise ContextLengthExceeded(
                f"the task needs {needed * self._cache.page_size} tokens of KV cache (prompt of "
                f"{request.prompt_tokens} and up to {request.settings.max_new_tokens} new tokens, "
                f"times {len(request.sequences)} sequences or beams); there are "
                f"{self._cache.capacity_tokens}: lower max_new_tokens, num_return_sequences or "
                "num_beams, or shorten the messages",
                param="generation_config.max_new_tokens",
            )

    def _check_fallback(self, request: Request) -> None:
        """Limit the time of the fallback, during which all other tasks wait."""
        settings = request.settings
        width = settings.num_rows
        if width * settings.max_new_tokens > self._max_exclusive_tokens:
            raise TaskArgsInvalid(
                f"generation_config.max_new_tokens is {settings.max_new_tokens}, times {width} "
                "beams or sequences; a task that runs alone, as this one would, may have "
                f"{self._max_exclusive_tokens} of both together: lower one of them",
                param="generation_config.max_new_tokens",
            )

    def admit(self) -> Request | None:
        """Move the first waiting request to running if its worst case fits beside the others'.

        A request for the generate fallback is admitted in its turn as well; it needs no pages.
        """
        if not self.waiting:
            return None
        request = self.waiting[0]
        num_pages = self._cache.pages_for(request.worst_case_tokens)
        if request.settings.batched:
            active = sum(len(r.sequences) for r in self.running)
            if active + len(request.sequences) > self._max_sequences:
                return None
            self.prefixes.evict(num_pages * len(request.sequences))
            if num_pages * len(request.sequences) > self._cache.num_free_pages:
                return None
        if not self._adapters.reserve(request.adapter):
            return None
        if request.settings.batched:
            for sequence in request.sequences:
                sequence.pages = self._cache.allocate(num_pages)
            if not request.scores_prompt:
                keys = self._chunk_keys(request)
                first = request.sequences[0]
                request.num_prefilled = self.prefixes.match(keys, first.pages, first.state)
        self.waiting.popleft()
        self.running.append(request)
        request.status = Status.PREFILL
        return request

    def prefill_chunks(self) -> list[ScheduledTokens]:
        """The next chunks of the prompts being prefilled, as many as the budget takes.

        A prompt is always cut at multiples of the chunk size from its own start, so that its keys
        and values are a function of the prompt alone. Attention is computed for each chunk of a
        prompt by itself: a layer writes the keys and values of all before it reads any.
        """
        chunks: list[ScheduledTokens] = []
        rows, streams = 0, self.num_streams
        full = False
        reading = [
            request
            for request in self.running
            if request.status == Status.PREFILL and request.settings.batched
        ]
        for request in reading:
            start = request.num_prefilled
            while start < request.prompt_tokens:
                stop = request.prompt.chunk_stop(start, self._prefill_chunk)
                if full := not self.budget.takes(
                    len(reading), streams, rows + stop - start, first=not chunks
                ):
                    break
                rows += stop - start
                chunks.append(request.prefill_chunk(start, stop))
                start = stop
            if full:  # those after it do not overtake it
                break
        self.budget.chosen(streams, rows, passed_over=full and not chunks)
        return chunks

    @property
    def num_streams(self) -> int:
        """Sequences that are being generated."""
        return sum(len(r.running) for r in self.running if r.status == Status.DECODE)

    def decoding(self) -> list[ScheduledTokens]:
        """The last token of every sequence that takes a decode step, request by request."""
        decoding = (r for r in self.running if r.status == Status.DECODE)
        return [token for request in decoding for token in request.decode_step()]

    def prefilled(self, request: Request) -> None:
        """Make what a prompt has computed so far known to tasks that begin alike."""
        first = request.sequences[0]
        keys = self._chunk_keys(request)[: request.num_prefilled // self._prefill_chunk]
        self.prefixes.register(keys, first.pages, first.state)

    def _chunk_keys(self, request: Request) -> list[bytes]:
        if not self.prefixes.enabled:
            return []
        if request.chunk_keys is None:
            chunk = self.prefixes.chunk
            adapter = request.adapter.digest if request.adapter else ""
            request.chunk_keys = chunk_keys(request.prompt, chunk, self._long_after, adapter)
        return request.chunk_keys

    def release(self, sequence: SequenceState) -> None:
        """Free a sequence's pages, except those that are kept as a known prefix."""
        if sequence.pages:
            self._cache.release(self.prefixes.release(sequence.pages))
            sequence.pages = []
            self._states.release(sequence.state)

    def drop_finished(self) -> None:
        """Forget ended requests and free what they hold."""
        for request in self.running:
            for sequence in request.sequences:
                if sequence.finished or request.status == Status.FINISHED:
                    self.release(sequence)
            if request.status == Status.FINISHED:
                self._adapters.release(request.adapter)
        self.running = [r for r in self.running if r.status != Status.FINISHED]
        self.waiting = deque(r for r in self.waiting if r.status != Status.FINISHED)

    def check_integrity(self) -> None:
        """Raise unless every page of the cache is free or owned once."""
        owned = [s.pages for r in self.running for s in r.sequences]
        self._cache.check_integrity([*owned, self.prefixes.kept_pages])
        rows = [s.state.row for r in self.running for s in r.sequences]
        self._states.check_integrity([*rows, *self.prefixes.kept_states])


def overloaded(num_waiting: int) -> Overloaded:
    """The error of a full queue."""
    return Overloaded(
        f"{num_waiting} tasks are waiting already: try again later", retry_after_s=RETRY_AFTER_S
    )
