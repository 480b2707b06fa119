"""From answers to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.harness.client import Answer
from benchmarks.harness.load import Run

_PERCENTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Target:
    """What an answer must keep to be a good one: seconds to its first token, and for each other."""

    first_token_s: float
    per_token_s: float


@dataclass(frozen=True)
class Spread:
    """Percentiles of a time in seconds; None where nothing was measured.

    ``at_least`` says which are lower bounds, because too many requests were cut off before.
    """

    p50: float | None
    p95: float | None
    p99: float | None
    at_least: tuple[str, ...] = ()


@dataclass(frozen=True)
class Summary:
    """What a load showed.

    Throughput is of the measured time: the tokens that came in it, those of unfinished answers too;
    the requests that ended in it. Latencies are of all requests that were sent.

    Attributes:
        sent: requests sent, in the ramp too.
        finished: answers that were complete before the end.
        cut_off: requests that the end of the measurement left unfinished.
        errors: by what was said, how often.
        goodput_per_s: answers a second that kept the target.
    """

    sent: int
    finished: int
    cut_off: int
    errors: dict[str, int]
    tokens_per_s: float
    requests_per_s: float
    goodput_per_s: float
    first_token: Spread
    per_token: Spread
    whole: Spread


def spread(known: Sequence[float], cut_off: Sequence[float] = ()) -> Spread:
    """Percentiles (nearest rank) of times, of which some are only known to be longer than they say.

    Those count as Kaplan and Meier have it: each is taken to be as long as what is seen of the
    others that are longer. A percentile that was not reached is the longest time that was seen.
    """
    every = sorted([(value, False) for value in known] + [(value, True) for value in cut_off])
    if not every:
        return Spread(None, None, None)
    found: dict[str, float] = {}
    longer = 1.0  # the share of all that takes longer than what was looked at
    for index, (value, open_end) in enumerate(every):
        if not open_end:
            longer *= 1 - 1 / (len(every) - index)
        for name, share in _PERCENTILES.items():
            if 1 - longer >= share - 1e-9:
                found.setdefault(name, value)
    at_least = tuple(name for name in _PERCENTILES if name not in found)
    return Spread(**dict.fromkeys(at_least, every[-1][0]) | found, at_least=at_least)


def characters_per_token(answers: Sequence[Answer]) -> float | None:
    """By the answers whose tokens the server has counted; None if there are none."""
    counted = [answer for answer in answers if answer.tokens and answer.text]
    tokens = sum(answer.tokens or 0 for answer in counted)
    return sum(len(answer.text) for answer in counted) / tokens if tokens else None


def tokens_of(answer: Answer, per_token: float | None) -> list[tuple[float, float]]:
    """When tokens came, and how many.

    Servers tell text in pieces of any number of tokens and count the tokens at the end. A piece is
    therefore worth its share of the answer's characters; where the tokens are not known, of
    ``per_token`` characters each; and where nothing is known, a piece is one token.
    """
    characters = len(answer.text)
    if answer.tokens is not None and characters:
        per_token = characters / answer.tokens if answer.tokens else None
    return [(when, len(text) / per_token if per_token else 1.0) for when, text in answer.deltas]


def first_token_s(answer: Answer) -> float | None:
    """Seconds to the first text; None if none came."""
    return answer.deltas[0][0] - answer.sent if answer.deltas else None


def per_token_s(answer: Answer, per_token: float | None) -> float | None:
    """Seconds for each token after the first piece of text; None if there are none."""
    pieces = tokens_of(answer, per_token)
    later = sum(count for _, count in pieces[1:])
    return (pieces[-1][0] - pieces[0][0]) / later if later else None


def summary(run: Run, target: Target) -> Summary:
    """The numbers of one load."""
    answers = run.answers
    per_token = characters_per_token(answers)
    seconds = run.end - run.start
    pieces = [piece for answer in answers for piece in tokens_of(answer, per_token)]
    tokens = sum(count for when, count in pieces if run.start <= when < run.end)
    complete = [answer for answer in answers if answer.complete]
    ended = [a for a in complete if a.ended is not None and run.start <= a.ended < run.end]
    errors: dict[str, int] = {}
    for answer in answers:
        if answer.error is not None:
            errors[answer.error] = errors.get(answer.error, 0) + 1
    cut_off = [a for a in answers if a.ended is None]
    return Summary(
        sent=len(answers),
        finished=len(complete),
        cut_off=len(cut_off),
        errors=errors,
        tokens_per_s=tokens / seconds,
        requests_per_s=len(ended) / seconds,
        goodput_per_s=sum(_good(answer, target, per_token) for answer in ended) / seconds,
        first_token=spread(
            [first for a in answers if (first := first_token_s(a)) is not None],
            [run.end - a.sent for a in cut_off if first_token_s(a) is None],
        ),
        per_token=spread(
            [each for a in answers if (each := per_token_s(a, per_token)) is not None]
        ),
        whole=spread(
            [a.ended - a.sent for a in complete if a.ended is not None],
            [run.end - a.sent for a in cut_off],
        ),
    )


def _good(answer: Answer, target: Target, per_token: float | None) -> bool:
    first, each = first_token_s(answer), per_token_s(answer, per_token)
    return (
        first is not None
        and first <= target.first_token_s
        and (each is None or each <= target.per_token_s)
    )
