"""A forward as recurrent layers see it: which rows follow each other, and from which states.

transformers' layers call functions of their modules for all that goes from a token to the next
(`engine.execution.modules.recurrence.layers`). While a forward is `computing`, these take the
states from here, one after the other: a forward comes to its layers always in the same order.

Shapes: T rows, C channels of a convolution over W tokens.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
import torch

from engine.execution.modules.recurrence.scan import scan
from engine.execution.modules.recurrence.steps import DecayByValue, Runs, Steps


class Computing(Protocol):
    """What recurrent layers call in a forward of ours."""

    @property
    def of_prompts(self) -> Sequence[bool]:
        """Which rows are tokens of prompts, not decoded ones."""
        ...

    def convolve(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Each channel of rows [T, C] over the last W tokens: weight [C, W], bias [C]."""
        ...

    def scan(self, queries: torch.Tensor, steps: Steps) -> torch.Tensor:
        """See `engine.execution.modules.recurrence.scan.scan`."""
        ...


_running = threading.local()


def current() -> Computing | None:
    """What computes on this thread; None where a model's own forward runs."""
    return getattr(_running, "forward", None)


@contextmanager
def computing(forward: Computing) -> Iterator[None]:
    """In the body, recurrent layers compute with this."""
    _running.forward = forward
    try:
        yield
    finally:
        _running.forward = None


@dataclass
class Inputs:
    """What each recurrence of a forward was given, so that states can be moved over its drafts.

    Attributes:
        rows: of the forward, which are kept: those of all runs with drafts.
        of_calls: in the order of a forward.
    """

    rows: slice
    of_calls: list[torch.Tensor | Steps] = field(default_factory=list)

    def add(self, given: torch.Tensor | Steps) -> None:
        """Keep what the next recurrence is given for all rows."""
        if isinstance(given, Steps):
            beta = None if given.beta is None else self._kept(given.beta)
            keys, values, decay = self._kept(given.keys), self._kept(given.values), given.decay
            if isinstance(decay, DecayByValue):
                decay = replace(decay, times=self._kept(decay.times))
            else:
                decay = self._kept(decay)
            self.of_calls.append(Steps(keys, values, decay, beta))
        else:
            self.of_calls.append(self._kept(given))

    def _kept(self, rows: torch.Tensor) -> torch.Tensor:
        """A copy where most of the rows are of prompts, whose memory would be kept too."""
        part = rows[self.rows]
        return part.clone() if 2 * len(part) < len(rows) else part


@dataclass
class StatefulForward:
    """One forward over runs of rows.

    Attributes:
        stores: the states, in the order of calls.
        runs: the rows of each sequence.
        of_prompts: which rows are tokens of prompts; those that are padding follow.
        inputs: where what is given is kept; None if nobody will need it.
        num_calls: how many states it has come to.
    """

    stores: Sequence[torch.Tensor]
    runs: Runs
    of_prompts: Sequence[bool]
    inputs: Inputs | None
    num_calls: int = 0
    _windows: WindowsByDevice = field(default_factory=dict)

    def convolve(
        self, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `Computing`."""
        windows = _windows_of(self._windows, self.runs, weight.shape[1], rows)
        return windows.convolve(rows, weight, bias, self._next(rows))

    def scan(self, queries: torch.Tensor, steps: Steps) -> torch.Tensor:
        """See `Computing`."""
        return scan(queries, steps, self._next(steps), self.runs)

    def _next(self, given: torch.Tensor | Steps) -> torch.Tensor:
        """The states of the next call."""
        if self.inputs is not None:
            self.inputs.add(given)
        self.num_calls += 1
        return self.stores[self.num_calls - 1]


def replay(inputs: Inputs, stores: Sequence[torch.Tensor], runs: Runs) -> None:
    """Write the states after some rows of a forward that was computed before."""
    windows: WindowsByDevice = {}
    for given, store in zip(inputs.of_calls, stores, strict=True):
        if isinstance(given, Steps):
            scan(given.keys, given, store, runs)
            continue
        _windows_of(windows, runs, store.shape[1] + 1, given).keep(given, store)


WindowsByDevice = dict[tuple[int, torch.device], "Windows"]
"""For each width of a convolution, on each device."""


def _windows_of(known: WindowsByDevice, runs: Runs, width: int, rows: torch.Tensor) -> Windows:
    """Made once a forward, not once a layer."""
    key = (width, rows.device)
    if key not in known:
        known[key] = Windows(runs, width, len(rows), rows.device)
    return known[key]


@dataclass
class Windows:
    """The last ``width`` inputs of a convolution, for each of ``num_rows`` rows.

    They are gathered from one list: zeros, the ``width`` - 1 rows that each run has kept, and the
    rows of the forward. A sum over the window is made of products and sums of single elements, so
    that it does not depend on what else is there.
    """

    runs: Runs
    width: int
    num_rows: int
    device: torch.device

    def convolve(
        self,
        rows: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        store: torch.Tensor,
    ) -> torch.Tensor:
        """Outputs [T, C] in the dtype of rows; writes what is kept to ``store`` [R, W - 1, C]."""
        known = self._known(rows, store)
        taps = weight.float().t()
        total = None if bias is None else bias.float()
        for tap, places in zip(taps, self._taps, strict=True):
            part = known[places].float() * tap
            total = part if total is None else total + part
        assert total is not None
        self._write(known, store)
        return total.to(rows.dtype)

    def keep(self, rows: torch.Tensor, store: torch.Tensor) -> None:
        """Write what is kept of rows [T, C]."""
        self._write(self._known(rows, store), store)

    def _known(self, rows: torch.Tensor, store: torch.Tensor) -> torch.Tensor:
        kept = store[self._read].flatten(0, 1)
        return torch.cat([rows.new_zeros(1, rows.shape[1]), kept.to(rows.dtype), rows])

    def _write(self, known: torch.Tensor, store: torch.Tensor) -> None:
        store[self._write_rows] = known[self._kept].to(store.dtype)

    @cached_property
    def _read(self) -> torch.Tensor:
        return torch.from_numpy(np.maximum(self.runs.read, 0)).to(self.device)

    @cached_property
    def _write_rows(self) -> torch.Tensor:
        return torch.from_numpy(self.runs.write[self.runs.write >= 0]).to(self.device)

    @cached_property
    def _taps(self) -> torch.Tensor:
        """[W, T]: where each input of each row's window is; of padding, the zeros."""
        owners = np.repeat(np.arange(len(self.runs)), self.runs.count)
        starts = np.cumsum(self.runs.count) - self.runs.count
        within = np.arange(len(owners)) - starts[owners]
        places = np.zeros((self.width, self.num_rows), dtype=np.int64)
        for tap in range(self.width):
            rows = self.runs.first[owners] + within
            places[tap, rows] = self._places(owners, within + tap - self.width + 1)
        return torch.from_numpy(places).to(self.device)

    @cached_property
    def _kept(self) -> torch.Tensor:
        """[runs that keep, W - 1]: the inputs before the next token."""
        owners = np.flatnonzero(self.runs.write >= 0)
        columns = [
            self._places(owners, self.runs.kept[owners] + tap - self.width + 1)
            for tap in range(self.width - 1)
        ]
        return torch.from_numpy(np.stack(columns, axis=1)).to(self.device)

    def _places(
        self, owners: np.ndarray[tuple[int], np.dtype[np.int64]], within: np.ndarray
    ) -> np.ndarray:
        """Where a run's input is, that lies so many tokens after its first; before it if < 0."""
        kept = self.width - 1
        base = 1 + len(self.runs) * kept
        before = np.where(self.runs.read[owners] >= 0, 1 + owners * kept + kept + within, 0)
        return np.where(within >= 0, base + self.runs.first[owners] + within, before)
