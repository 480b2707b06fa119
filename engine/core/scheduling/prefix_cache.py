"""Prefix reuse: keys and values of prompt beginnings, kept for tasks that begin alike.

A prompt is cut into chunks at multiples of the chunk size, and always prefilled chunk by chunk, so
that a chunk's keys and values are a function of the tokens and images up to its end. Whole chunks
are kept here under a chained hash of these tokens and images. A task whose beginning is found here
copies it into its own pages, which then hold the same bits that it would have computed. A copy
costs a fraction of a prefill, happens once for each task, and leaves its pages contiguous.

Recurrent layers have a state after each token instead of keys and values of all; it is kept at the
ends of some chunks, and a task begins at the last of these.

While the task that made a chunk runs, the chunk's pages belong to the task. Afterwards they are
kept here until the room is needed (least recently used first, ends before beginnings).
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.execution.kv_cache import KVCache
from engine.execution.modules.recurrence.states import StateCache
from engine.requests.prompt import Prompt
from engine.requests.request import RecurrentState


@dataclass(eq=False)
class _Chunk:
    key: bytes
    parent: _Chunk | None
    pages: list[int]
    last_used: int
    state: int | None = None  # of recurrent layers at its end: a row of the state cache
    owned_by_task: bool = True
    children: set[bytes] = field(default_factory=set)


def chunk_keys(
    prompt: Prompt, chunk: int, long_after: int | None = None, adapter: str = ""
) -> list[bytes]:
    """A key for each chunk of a prompt that may be reused.

    A prompt of more than ``long_after`` tokens has other keys than one that is not: the model
    computes both otherwise from their beginning. So has one with an ``adapter``, by its digest.

    The chunk with the last token is not among them, because a task needs its logits. Nor are those
    after the first cut that is not a multiple of ``chunk`` (`Prompt.chunk_stop`). Each key covers
    the tokens up to the chunk's end and the content of every image that has a token there.
    """
    keys: list[bytes] = []
    is_long = long_after is not None and len(prompt.token_ids) > long_after
    digest = hashlib.sha256((b"long" if is_long else b"") + adapter.encode())
    images = 0
    for stop in range(chunk, len(prompt.token_ids), chunk):
        if prompt.chunk_stop(stop - chunk, chunk) != stop:
            break
        digest.update(array("q", prompt.token_ids[stop - chunk : stop]).tobytes())
        while images < len(prompt.images) and prompt.image_starts[images] < stop:
            digest.update(prompt.images[images].digest)
            images += 1
        keys.append(digest.digest())
    return keys


class PrefixCache:
    """Chunks by key. Belongs to the engine's thread, like the pages that it keeps."""

    def __init__(self, cache: KVCache, chunk: int, states: StateCache, max_states: int) -> None:
        """Keep prefixes of a cache, in chunks of so many tokens, and so many states at most."""
        self._cache = cache
        self._states = states
        self._max_states = max_states
        self.chunk = chunk
        self._pages_per_chunk = chunk // cache.page_size
        # Pages must not straddle chunks.
        self.enabled = chunk % cache.page_size == 0
        self._chunks: dict[bytes, _Chunk] = {}
        self._chunk_of_page: dict[int, _Chunk] = {}
        self._clock = 0
        self.num_kept_pages = 0
        self.reused_tokens = 0

    @property
    def kept_pages(self) -> list[int]:
        """Pages that belong to the cache and not to a task; on the engine's thread only."""
        return [
            p for chunk in self._chunks.values() if not chunk.owned_by_task for p in chunk.pages
        ]

    @property
    def kept_states(self) -> list[int]:
        """Rows of recurrent states that belong to the cache."""
        return [c.state for c in self._chunks.values() if c.state is not None]

    def match(self, keys: Sequence[bytes], pages: Sequence[int], state: RecurrentState) -> int:
        """Copy the longest known beginning into a task's pages; returns its number of tokens.

        Of a model with recurrent layers ``state`` becomes the one at its end.
        """
        self._clock += 1
        found: list[_Chunk] = []
        for key in keys:
            chunk = self._chunks.get(key)
            if chunk is None:
                break
            found.append(chunk)
        if self._states:
            while found and found[-1].state is None:
                found.pop()
            if found:
                self._states.give(state, found[-1].state, len(found) * self.chunk)
        for chunk in found:
            chunk.last_used = self._clock
        known = [page for chunk in found for page in chunk.pages]
        tokens = len(known) * self._cache.page_size
        if known:
            self._cache.copy(known, pages, 0, tokens)
            self.reused_tokens += tokens
        return tokens

    def register(self, keys: Sequence[bytes], pages: Sequence[int], state: RecurrentState) -> None:
        """Make a prompt's chunks known. Its pages stay the task's until `release`.

        ``state`` is that of the prompt so far, which is kept if it is at the end of a chunk.
        """
        self._clock += 1
        parent: _Chunk | None = None
        for index, key in enumerate(keys):
            chunk = self._chunks.get(key)
            if chunk is None:
                start = index * self._pages_per_chunk
                mine = list(pages[start : start + self._pages_per_chunk])
                chunk = self._chunks[key] = _Chunk(key, parent, mine, self._clock)
                self._chunk_of_page |= dict.fromkeys(mine, chunk)
                if parent is not None:
                    parent.children.add(key)
            parent = chunk
        at_end = state.num_tokens == len(keys) * self.chunk
        if parent is not None and parent.state is None and at_end and state.row is not None:
            self._make_room_for_state()
            parent.state = self._states.share(state.row)

    def _make_room_for_state(self) -> None:
        kept = [chunk for chunk in self._chunks.values() if chunk.state is not None]
        if len(kept) >= self._max_states:
            self._drop_state(min(kept, key=lambda chunk: chunk.last_used))

    def _drop_state(self, chunk: _Chunk) -> None:
        if chunk.state is not None:
            self._states.drop(chunk.state)
            chunk.state = None

    def release(self, pages: Sequence[int]) -> list[int]:
        """Keep the pages of an ended sequence that hold known chunks; returns those to be freed."""
        free: list[int] = []
        for page in pages:
            if (chunk := self._chunk_of_page.get(page)) is None:
                free.append(page)
            else:
                chunk.owned_by_task = False
                self.num_kept_pages += 1
        return free

    def evict(self, num_pages: int) -> None:
        """Forget chunks until that many pages are free, or no chunk is left."""
        while self._cache.num_free_pages < num_pages:
            ends = [c for c in self._chunks.values() if not c.owned_by_task and not c.children]
            if not ends:
                return
            self._forget(min(ends, key=lambda chunk: chunk.last_used))

    def _forget(self, chunk: _Chunk) -> None:
        del self._chunks[chunk.key]
        for page in chunk.pages:
            del self._chunk_of_page[page]
        if chunk.parent is not None:
            chunk.parent.children.discard(chunk.key)
        self._drop_state(chunk)
        self._cache.release(chunk.pages)
        self.num_kept_pages -= len(chunk.pages)
