"""Log probabilities of a prompt's tokens, from the rows of the forwards that prefill it.

The logits of all rows of a prompt would take too much memory, so the language model head runs on a
few rows at a time and each logit is dropped when its row is scored. A model's own forward is the
only place that knows what happens to hidden states before and after the head (scales, soft caps):
it is called once for each of these parts, while its body computes only once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from engine.execution.batch_sizes import BatchSizes
from engine.platform.transfer import upload
from engine.requests.request import ScheduledTokens
from engine.sampling.logprobs import Logprobs


@dataclass(frozen=True)
class ScoredRows:
    """Consecutive rows of a forward, on which the head runs at once.

    Attributes:
        start: the first of them.
        targets: the tokens that they predict.
        num_top: alternatives to report with each.
        num_keep: rows that the head runs on; the rest is padding.
    """

    start: int
    targets: Sequence[int]
    num_top: int
    num_keep: int

    def scores(
        self, logits_of: Callable[[Sequence[int]], torch.Tensor], device: torch.device
    ) -> torch.Tensor:
        """What `Logprobs.of` reports of the targets. ``logits_of`` runs the head on some rows."""
        num_rows = len(self.targets)
        padding = [0] * (self.num_keep - num_rows)
        logits = logits_of([*range(self.start, self.start + num_rows), *padding])[:num_rows]
        return Logprobs(logits, self.num_top).of(upload(self.targets, device))


def scored_rows(
    chunks: Sequence[ScheduledTokens], index: int, sizes: BatchSizes
) -> list[ScoredRows]:
    """The rows of one of the chunks of a forward that are scored; mostly none.

    As for sampling, the head runs at a decode size, so that a token has the same log probability
    wherever it stands.
    """
    chunk = chunks[index]
    report = chunk.owner.report
    if report is None or report.num_top is None:
        return []
    first = sum(before.num_tokens for before in chunks[:index])
    targets = report.targets(chunk.start, chunk.stop)
    return [
        ScoredRows(
            first + start,
            part := tuple(targets[start : start + sizes.max_head]),
            report.num_top,
            sizes.for_decode(len(part)),
        )
        for start in range(0, len(targets), sizes.max_head)
    ]


@contextmanager
def body_runs_once(model: Any) -> Iterator[None]:
    """In the ``with`` block all forwards of a model are on the same input: its body runs once.

    Later forwards take the hidden states of the first one, and compute what comes after them.
    """
    decoder = model.get_decoder()
    body = next(c for c in model.children() if any(m is decoder for m in c.modules()))
    own, was_replaced = body.forward, "forward" in vars(body)
    output: Any = None

    def forward(*args: Any, **kwargs: Any) -> Any:
        nonlocal output
        if output is None:
            output = own(*args, **kwargs)
        return output

    body.forward = forward
    try:
        yield
    finally:
        if was_replaced:
            body.forward = own
        else:
            del body.forward
