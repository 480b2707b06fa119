"""Adds drafts to a decode step: as many as its padding holds, more where that pays."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from engine.core.speculation.guesser import Guess, Guesser
from engine.core.speculation.row_budget import Candidate, drafts_that_pay
from engine.execution.batch_sizes import BatchSizes
from engine.requests.request import Request, ScheduledTokens, SequenceState

logger = logging.getLogger(__name__)

_NOTHING = Guess((), ())
_LIKELY = 0.5
"""The chance of a draft for which a sequence waits, where it need not: a lookahead is lost."""


class Speculation:
    """Chooses the drafts of a step. Belongs to the engine's thread.

    A draft is a row like any other. Its token is right if it is the one that is drawn in its place;
    then the row that it made is that of the next step, bit for bit. So drafts change no answer.

    Attributes:
        guesser: guesses what comes next; None to read known tokens only.
        num_proposed: drafts that were guessed, so far.
        num_accepted: those of them that were right.
        num_known: known tokens that were right, and read in a row of their own.
    """

    def __init__(
        self,
        sizes: BatchSizes | None,
        guesser: Guesser | None,
        *,
        vocab_size: int,
        image_token_id: int | None,
    ) -> None:
        """For a model with these batch sizes; None for one that has no decode steps.

        A draft is never an image token: models may place images by it.
        """
        self.guesser = guesser
        self._sizes = sizes
        self._vocab_size = vocab_size
        self._image_token_id = image_token_id
        self.num_proposed = 0
        self.num_accepted = 0
        self.num_known = 0

    def with_drafts(
        self, decoding: Sequence[ScheduledTokens], *, num_prompts: int, prefill_rows: int = 0
    ) -> Sequence[ScheduledTokens]:
        """The rows of a decode step and of its drafts.

        Args:
            decoding: the last token of each sequence of the step.
            num_prompts: how many prompts may be completed in the same forward.
            prefill_rows: rows of chunks of prompts that share the forward.
        """
        assert self._sizes is not None
        num_rows = len(decoding)
        room = self._sizes.max_head - num_rows - num_prompts
        if prefill_rows:
            padded = self._sizes.for_prefill(prefill_rows + num_rows)
            room = min(room, padded - prefill_rows - num_rows)
        if room <= 0:
            return decoding
        guesses = [self._guess(tokens.owner, tokens.sequence, room) for tokens in decoding]
        if not any(guess.tokens for guess in guesses):
            return decoding
        candidates = [
            Candidate(guess.chances, tokens.stop)
            for guess, tokens in zip(guesses, decoding, strict=True)
        ]
        counts = drafts_that_pay(candidates, room, self._sizes, prefill_rows)
        rows: list[ScheduledTokens] = []
        for tokens, guess, count in zip(decoding, guesses, counts, strict=True):
            sequence = tokens.sequence
            assert sequence is not None
            sequence.drafts, sequence.num_right = tuple(guess.tokens[:count]), 0
            rows.append(tokens)
            rows += [replace(tokens, start=tokens.start + n, ahead=n) for n in range(1, count + 1)]
        return rows

    def promises(self, request: Request, sequence: SequenceState) -> bool:
        """Whether there will be drafts for a sequence once its last token has been read."""
        if sequence.known:
            return True
        chances = self._next(request, sequence, 1).chances
        return bool(chances) and chances[0] > _LIKELY

    def settle(self, sequence: SequenceState, before: int) -> None:
        """Count the drafts of a step that has been finished, and learn from them.

        Args:
            sequence: it has the tokens of the step.
            before: how many it had before.
        """
        drafts, right = len(sequence.drafts), sequence.num_right
        if sequence.known:
            self.num_known += right
            done = len(sequence.token_ids)
            was_known = list(sequence.known[before:done]) == sequence.token_ids[before:]
            if not was_known or done >= len(sequence.known):
                sequence.known = ()
            return
        self.num_proposed += drafts
        self.num_accepted += right
        if drafts and self.guesser is not None:
            self.guesser.learn(sequence, drafts, right)

    def _guess(self, request: Request, sequence: SequenceState | None, room: int) -> Guess:
        """The drafts that a sequence could have in this step."""
        if sequence is None or request.beams is not None or not sequence.is_read:
            return _NOTHING
        assert request.sampler is not None
        done = len(sequence.token_ids)
        slowest = min(len(other.token_ids) for other in request.running)
        limit = min(
            room,
            request.settings.max_new_tokens - done - 1,
            slowest + request.sampler.max_steps_ahead - done,
        )
        if limit <= 0:
            return _NOTHING
        return self._next(request, sequence, limit)

    def _next(self, request: Request, sequence: SequenceState, limit: int) -> Guess:
        """What may come next. A fault here costs drafts, and never the task or the engine."""
        try:
            if sequence.known:
                done = len(sequence.token_ids)
                tokens = sequence.known[done : done + limit]
                guess = Guess(tokens, [1.0] * len(tokens))
            elif self.guesser is not None:
                guess = self.guesser.guess(request, sequence, limit)
            else:
                return _NOTHING
            return self._sensible(request, sequence, guess)
        except Exception:
            logger.exception("no drafts for task %s", request.log_id)
            return _NOTHING

    def _sensible(self, request: Request, sequence: SequenceState, guess: Guess) -> Guess:
        """A guess up to a token that cannot be followed by another one, or cannot come."""
        ends = request.settings.eos_token_ids
        stop = 0
        for token in guess.tokens:
            is_token = 0 <= token < self._vocab_size  # what is said to be known may be anything
            if not is_token or token in ends or token == self._image_token_id:
                break
            stop += 1
        if stop and sequence.matcher is not None:
            stop = sequence.matcher.allowed(guess.tokens[:stop])
        return Guess(guess.tokens[:stop], guess.chances[:stop])
