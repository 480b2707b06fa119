"""How many drafts a step takes: those that fit in its padding, and more where they pay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

_CLEARLY = 1.02  # as many tokens a second as with fewer rows


def drafts_that_pay(
    chances: Sequence[Sequence[float]], room: int, seconds: Mapping[int, float], padded: int
) -> list[int]:
    """For each sequence of a step the number of its drafts.

    A step of n rows draws a token for each sequence, and one more for each draft that is right. Of
    all batch sizes the one is taken that draws most tokens a second, by what a forward takes.

    Args:
        chances: for each sequence and each of its drafts, that it and all before it are right.
        room: drafts at most.
        seconds: of a forward at each batch size; empty if the batch size does not change.
        padded: the batch size without drafts.
    """
    num_rows = len(chances)
    ranked = sorted(
        ((chance, owner) for owner, own in enumerate(chances) for chance in own),
        key=lambda draft: -draft[0],
    )[:room]
    gains = [0.0]
    for chance, _ in ranked:
        gains.append(gains[-1] + chance)
    if seconds:
        free = min(padded - num_rows, len(ranked))
        best, taken = (num_rows + gains[free]) / seconds.get(padded, 1.0), free
        for size, time_taken in sorted(seconds.items()):
            count = min(size - num_rows, len(ranked))
            if size <= padded or count <= taken:
                continue
            pace = (num_rows + gains[count]) / time_taken
            if pace > best * _CLEARLY:
                best, taken = pace, count
        ranked = ranked[:taken]
    counts = [0] * num_rows
    for _, owner in ranked:
        counts[owner] += 1
    return counts
