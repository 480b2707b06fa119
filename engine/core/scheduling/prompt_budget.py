"""How many rows of prompts a step takes beside the answers that are being generated.

This depends on the clock, on purpose: a prompt is cut at the same places whenever its chunks are
computed, and a row has the same bits at all verified batch sizes. So the time decides when a token
comes, and never which token it is.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.core.scheduling.step_times import SizeTimes
from engine.execution.batch_sizes import BatchSizes

_MOST_PASSED = 3
"""So many steps in a row may pass over prompts whose next chunk takes too long."""


@dataclass
class TimedStep:
    """A step whose time is measured.

    Attributes:
        begun: when it was launched, by the budget's clock.
        streams: sequences that were generated when it was launched.
        prompt_rows: its rows of prompts.
    """

    begun: float
    streams: int = 0
    prompt_rows: int = 0


@dataclass
class PromptBudget:
    """Decides for each step. Belongs to the engine's thread.

    While nothing is generated, a step takes as many rows of prompts as one forward holds. Otherwise
    the step may take ``max_wait_steps`` times what its answers' own step takes, as measured; where
    more requests wait for their first token than answers are generated, so many times more: few
    streams do not hold up many that wait. A chunk that takes longer by itself is taken after
    `_MOST_PASSED` steps without one.

    Attributes:
        sizes: at which forwards may run; None for a model that has no steps.
        max_wait_steps: of the configuration; None for no limit.
        clock: seconds.
    """

    sizes: BatchSizes | None
    max_wait_steps: int | None
    clock: Callable[[], float] = time.perf_counter
    _decode: SizeTimes = field(init=False)
    _prompts: SizeTimes = field(init=False)
    _step: TimedStep = field(init=False)
    _num_passed: int = field(init=False, default=0)
    _last_end: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        seconds = self.sizes.seconds if self.sizes else {}
        mixes = self.sizes is not None and self.sizes.can_mix_prefill_and_decode
        self._decode = SizeTimes(seconds)
        # With ``mixes`` of forwards with both, otherwise of forwards with prompts alone.
        self._prompts = SizeTimes(seconds if mixes else {})
        self._step = TimedStep(self.clock())

    # --- What a step takes -----------------------------------------------------------------------

    def begin(self) -> TimedStep:
        """A step that is launched now; `takes` and `chosen` are about it."""
        self._step = TimedStep(self.clock())
        return self._step

    def takes(self, waiting: int, streams: int, prompt_rows: int, *, first: bool) -> bool:
        """Whether the step may have so many rows of prompts.

        Args:
            waiting: requests whose prompts are being read.
            streams: sequences that are being generated.
            prompt_rows: with the chunk that is in question.
            first: it is the step's first chunk.
        """
        sizes = self.sizes
        if sizes is None:
            return False
        rows = self._rows(streams, prompt_rows)
        if rows > sizes.prefill[-1]:
            # A chunk that does not fit beside the others runs in a forward of its own.
            rows = prompt_rows if first else rows
            if rows > sizes.prefill[-1]:
                return False
        if not streams or self.max_wait_steps is None:
            return True
        if first and self._num_passed >= _MOST_PASSED:
            return True
        own, taken = self._of_answers(streams), self._prompts.of(sizes.for_prefill(rows))
        if own is None or taken is None:
            return False
        if not sizes.can_mix_prefill_and_decode:
            taken += own
        return taken <= self.max_wait_steps * own * max(1.0, waiting / streams)

    def chosen(self, streams: int, prompt_rows: int, *, passed_over: bool) -> None:
        """The step has so many rows of prompts; ``passed_over`` says that others got none."""
        self._step.streams, self._step.prompt_rows = streams, prompt_rows
        self._num_passed = self._num_passed + 1 if passed_over else 0

    # --- What it took ----------------------------------------------------------------------------

    def end(self, step: TimedStep) -> None:
        """The step's tokens are there.

        It has taken the time since the step before it ended: that is what an answer waits. Before
        it was launched it takes none.
        """
        now = self.clock()
        seconds = now - max(step.begun, self._last_end)
        self._last_end = now
        sizes = self.sizes
        if sizes is None or not (step.streams or step.prompt_rows):
            return
        if not step.prompt_rows:
            self._decode.note(sizes.for_decode(step.streams), seconds)
            return
        rows = self._rows(step.streams, step.prompt_rows)
        if not sizes.can_mix_prefill_and_decode:
            seconds = max(0.0, seconds - (self._of_answers(step.streams) or 0.0))
        if rows <= sizes.prefill[-1]:
            self._prompts.note(sizes.for_prefill(rows), seconds)

    def _rows(self, streams: int, prompt_rows: int) -> int:
        """Rows of the forward that has these rows of prompts."""
        assert self.sizes is not None
        return prompt_rows + (streams if self.sizes.can_mix_prefill_and_decode else 0)

    def _of_answers(self, streams: int) -> float | None:
        """What a step takes without prompts."""
        assert self.sizes is not None
        return self._decode.of(self.sizes.for_decode(streams)) if streams else 0.0
