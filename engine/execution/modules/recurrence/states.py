"""The states of sequences, for layers that keep one of fixed size instead of keys and values.

A state is never changed: each forward writes the next one into another row, and a sequence moves
there once the forward has succeeded. So a forward that fails has changed nothing, the same state
can belong to several sequences (of a task with several answers, of beams) and to a known prefix,
and drafts, which may be wrong, need no copy of what was before them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from engine.execution.modules.recurrence.forward import Inputs, StatefulForward, computing, replay
from engine.execution.modules.recurrence.steps import Runs, Steps
from engine.platform.platforms import platform_of
from engine.requests.request import RecurrentState, ScheduledTokens


@dataclass(frozen=True)
class StateShape:
    """What a layer keeps of one sequence; a layer may have several."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def num_bytes(self) -> int:
        """Bytes of one sequence's."""
        return int(np.prod(self.shape)) * self.dtype.itemsize


@dataclass
class StateRecorder:
    """Stands in for a forward once, at load, to learn the shapes of a model's states."""

    shapes: list[StateShape] = field(default_factory=list)
    of_prompts: Sequence[bool] = ()

    def convolve(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Note the shape and return zeros."""
        channels, width = weight.shape
        self.shapes.append(StateShape((width - 1, channels), rows.dtype, rows.device))
        return torch.zeros_like(rows, memory_format=torch.contiguous_format)

    def scan(self, queries: torch.Tensor, steps: Steps) -> torch.Tensor:
        """Note the shape and return zeros."""
        heads, width = steps.values.shape[1:]
        shape = (heads, steps.keys.shape[2], width)
        self.shapes.append(StateShape(shape, torch.float32, steps.values.device))
        return torch.zeros_like(steps.values, memory_format=torch.contiguous_format)


@dataclass(eq=False)
class _Replay:
    """Drafts that were right, which a state has to be moved over."""

    state: RecurrentState
    inputs: Inputs
    first: int
    count: int


@dataclass
class _Move:
    state: RecurrentState
    row: int
    num_tokens: int = 0


class StateCache:
    """A pool of rows, one for each state. Belongs to the engine's thread.

    Attributes:
        shapes: of what a row has, in the order in which a forward comes to them.
        num_rows: of the pool.
    """

    def __init__(self, shapes: Sequence[StateShape], num_rows: int) -> None:
        """Make the pool; a model without recurrent layers has no shapes, and needs no rows."""
        self.shapes = tuple(shapes)
        self.num_rows = num_rows if shapes else 0
        self.stores = [
            platform_of(one.device).zeros((num_rows, *one.shape), one.dtype, one.device)
            for one in shapes
        ]
        self._uses = np.zeros(self.num_rows, dtype=np.int64)
        self._replays: list[_Replay] = []

    def __bool__(self) -> bool:
        """Whether the model has recurrent layers."""
        return bool(self.shapes)

    @property
    def num_bytes(self) -> int:
        """Bytes of the whole pool."""
        return sum(store.nbytes for store in self.stores)

    @property
    def num_free(self) -> int:
        """Rows that nobody uses."""
        return int((self._uses == 0).sum())

    # --- Owners ----------------------------------------------------------------------------------

    def take(self) -> int:
        """A row that nobody uses, for one owner."""
        free = np.flatnonzero(self._uses == 0)
        if not len(free):
            raise RuntimeError(f"recurrent states: all {self.num_rows} rows are in use")
        self._uses[free[0]] = 1
        return int(free[0])

    def share(self, row: int) -> int:
        """One more owner of a row."""
        if self._uses[row] < 1:
            raise RuntimeError("recurrent states: a row without an owner was shared")
        self._uses[row] += 1
        return row

    def drop(self, row: int) -> None:
        """One owner less."""
        if self._uses[row] < 1:
            raise RuntimeError("recurrent states: a row was released twice")
        self._uses[row] -= 1

    def give(self, state: RecurrentState, row: int | None, num_tokens: int) -> None:
        """Make a state the one of a row, beside the row's other owners; None: that of no token."""
        if row is not None:
            self.share(row)
        self.release(state)
        state.row, state.num_tokens = row, num_tokens

    def release(self, state: RecurrentState) -> None:
        """Free the row of a sequence that has ended, or begins again."""
        state.settle = None
        self._replays = [each for each in self._replays if each.state is not state]
        if state.row is not None:
            self.drop(state.row)
        state.row, state.num_tokens = None, 0

    def random_state(self, seed: int) -> RecurrentState:
        """A state that stays as it is in forwards, for the batch invariance check."""
        if not self.shapes:
            return RecurrentState(fixed=True)
        row = self.take()
        generator = torch.Generator().manual_seed(seed)
        for store in self.stores:
            store[row] = torch.randn(store[row].shape, generator=generator).to(store)
        return RecurrentState(row, fixed=True)

    def check_integrity(self, owned: Sequence[int | None]) -> None:
        """Raise unless each row has as many owners as it is named among ``owned``."""
        counts = np.zeros(self.num_rows, dtype=np.int64)
        np.add.at(counts, [row for row in owned if row is not None], 1)
        if not np.array_equal(counts, self._uses):
            raise RuntimeError("recurrent states: rows leaked, or are owned too often")

    # --- Forwards --------------------------------------------------------------------------------

    @contextmanager
    def running(self, scheduled: Sequence[ScheduledTokens]) -> Iterator[None]:
        """In the body, recurrent layers compute these tokens, in order; then their states move on.

        Drafts are computed, and do not move a state before it is known how many are right
        (`RecurrentState.settle`).
        """
        if not self.shapes:
            yield
            return
        self._catch_up()
        moves: list[_Move] = []
        try:
            forward = self._forward(scheduled, moves)
            with computing(forward):
                yield
            if forward.num_calls != len(self.stores):
                raise RuntimeError(
                    f"a forward came to {forward.num_calls} recurrent states of {len(self.stores)}"
                )
        except BaseException:
            for move in moves:
                self.drop(move.row)
            raise
        for move in moves:
            if move.state.row is not None:
                self.drop(move.state.row)
            move.state.row, move.state.num_tokens = move.row, move.num_tokens

    def _forward(self, scheduled: Sequence[ScheduledTokens], moves: list[_Move]) -> StatefulForward:
        """How a forward uses the rows; adds the rows that it takes to ``moves``."""
        built = _RunsBuilder()
        drafts: list[tuple[RecurrentState, int]] = []
        row = 0
        for tokens in scheduled:
            if not built.extends(tokens):
                state = tokens.state
                _check_place(tokens)
                write = -1
                if state is not None and not state.fixed:
                    write = self.take()
                    moves.append(_Move(state, write))
                read = -1 if state is None or state.row is None else state.row
                built.begin(row, read, write)
            elif tokens.ahead == 1 and tokens.state is not None and not tokens.state.fixed:
                drafts.append((tokens.state, row))
            built.add(tokens)
            row += tokens.num_tokens
            if moves and moves[-1].state is tokens.state and not tokens.ahead:
                moves[-1].num_tokens = tokens.stop
        inputs: Inputs | None = None
        if drafts:
            begin = drafts[0][1]
            inputs = Inputs(slice(begin, row))
            for state, first in drafts:
                state.settle = partial(self._settle, state, inputs, first - begin)
        of_prompts: list[bool] = []
        for tokens in scheduled:  # a measurement compares with a forward of a whole prompt
            of_prompt = tokens.request is None or tokens.of_prompt
            of_prompts += [of_prompt] * tokens.num_tokens
        return StatefulForward(self.stores, built.runs(), of_prompts, inputs)

    def _settle(self, state: RecurrentState, inputs: Inputs, first: int, num_right: int) -> None:
        state.settle = None
        if num_right:
            self._replays.append(_Replay(state, inputs, first, num_right))

    def _catch_up(self) -> None:
        """Move states over the drafts that were right, those of one forward at once."""
        while self._replays:
            inputs = self._replays[0].inputs
            self._replay(inputs, [each for each in self._replays if each.inputs is inputs])
            self._replays = [each for each in self._replays if each.inputs is not inputs]

    def _replay(self, inputs: Inputs, members: Sequence[_Replay]) -> None:
        count = np.array([each.count for each in members], dtype=np.int64)
        rows = [self.take() for _ in members]
        runs = Runs(
            first=np.array([each.first for each in members], dtype=np.int64),
            count=count,
            kept=count,
            read=np.array([each.state.row for each in members], dtype=np.int64),
            write=np.array(rows, dtype=np.int64),
        )
        try:
            replay(inputs, self.stores, runs)
        except BaseException:
            for row in rows:
                self.drop(row)
            raise
        for each, row in zip(members, rows, strict=True):
            assert each.state.row is not None
            self.drop(each.state.row)
            each.state.row = row
            each.state.num_tokens += each.count


def _check_place(tokens: ScheduledTokens) -> None:
    """Refuse tokens that do not follow those of their state.

    A step may fail after its forward, which has moved the states; its members then run again. Keys
    and values would be written again, but a state would be moved twice.
    """
    state = tokens.state
    if state is not None and not state.fixed and state.num_tokens != tokens.start:
        raise RuntimeError(
            f"recurrent states: token {tokens.start} does not follow {state.num_tokens} tokens"
        )


@dataclass
class _RunsBuilder:
    """Collects `Runs`."""

    _last: ScheduledTokens | None = None
    _parts: list[list[int]] = field(default_factory=list)

    def extends(self, tokens: ScheduledTokens) -> bool:
        """Whether tokens follow the last ones in the same sequence."""
        last = self._last
        return (
            last is not None
            and tokens.state is not None
            and tokens.state is last.state
            and tokens.start == last.stop
        )

    def begin(self, first: int, read: int, write: int) -> None:
        """A run whose first row this is; its tokens follow."""
        self._parts.append([first, 0, 0, read, write])

    def add(self, tokens: ScheduledTokens) -> None:
        """Tokens of the run that was begun last."""
        self._last = tokens
        part = self._parts[-1]
        part[1] += tokens.num_tokens
        if not tokens.ahead:
            part[2] = part[1]

    def runs(self) -> Runs:
        """All of them."""
        columns = np.array(self._parts, dtype=np.int64).reshape(-1, 5).T
        return Runs(*(np.ascontiguousarray(column) for column in columns))
