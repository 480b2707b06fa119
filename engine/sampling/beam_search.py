"""Beam search in the batch loop: transformers' search, with the forward taken out of it.

`transformers.GenerationMixin._beam_search` computes forwards and searches in one loop. Here the
batch loop computes the forwards, in which beams are rows like any others, and `BeamSearch` does the
rest of a step in two halves. The part that needs the logits runs on the device and does not wait.
The choice among the few candidates that result runs on the host, where the text is and pages are
allocated. Transformers' own functions make that choice; the tokens are those that
``set_seed(seed); model.generate(...)`` returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from engine.platform.transfer import upload
from engine.sampling.draws.noise import fill, source_of_noise
from engine.sampling.logprobs import aligned
from engine.sampling.sampler import invalid_logits, logits_processors
from engine.sampling.settings import SamplingParams
from engine.text.detokenizer import Detokenizer

_NEVER = -1.0e9  # the score that transformers gives to what must not be chosen


@dataclass(frozen=True, eq=False, slots=True)
class Beam:
    """A beam as a chain with one link for each token; beams that begin alike share the beginning.

    Attributes:
        before: the beam that this one extends; None before the first token.
        parent: the place of ``before`` among the running beams of its step.
        token: the last token.
        text: the detokenizer of the whole beam, where there are stop strings.
    """

    before: Beam | None
    parent: int
    token: int
    text: Detokenizer | None

    @property
    def token_ids(self) -> list[int]:
        """All tokens of the beam."""
        reversed_ids: list[int] = []
        beam = self
        while beam.before is not None:
            reversed_ids.append(beam.token)
            beam = beam.before
        return reversed_ids[::-1]


class Copy(NamedTuple):
    """Keys and values that one beam gets from another: those of its last ``num_tokens`` tokens."""

    source: int
    target: int
    num_tokens: int


class Moves(NamedTuple):
    """Where the beams of the next step find their keys and values.

    Attributes:
        homes: for each new beam, the old beam whose pages it takes over; a permutation.
        copies: what is to be copied between pages, named by the old beams. No copy reads a page
            that another copy writes to.
    """

    homes: list[int]
    copies: list[Copy]


class BeamSearch:
    """The beam search of one task. Belongs to the engine's thread.

    Attributes:
        running: the beams that the next step extends.
        in_flight: candidates have been computed, and the beams have not been chosen yet.
        done: the search is over.
    """

    def __init__(
        self,
        model: Any,
        settings: SamplingParams,
        prompt_ids: Sequence[int],
        seed: int,
        device: torch.device,
        text: Detokenizer | None,
    ) -> None:
        """Begin a search.

        Args:
            model: whose processors and search functions are used.
            settings: of the task.
            prompt_ids: tokens of the prompt.
            seed: of the task.
            device: where the logits are.
            text: a fresh detokenizer; None where there are no stop strings to watch for.
        """
        prompt = upload(prompt_ids, device)[None]
        self._model = model
        self._settings = settings
        self._processors = logits_processors(model, settings, prompt)
        self._device = device
        self._noise = source_of_noise(seed, device)
        num_beams = settings.num_beams
        eos = settings.hf._eos_token_tensor
        num_eos = 0 if eos is None else len(eos)
        self._num_candidates = max(2, 1 + num_eos) * num_beams
        self._may_end = torch.arange(self._num_candidates) < num_beams
        self._ids = prompt.repeat(num_beams, 1)  # as `generate` passes them to processors
        self._vocab_size = 0
        self._num_tokens = 0
        # The state of `_beam_search`, for a batch of one. Its first step sees one beam only.
        self._scores = torch.full((1, num_beams), _NEVER)
        self._scores[0, 0] = 0
        self._ended_scores = torch.full((1, num_beams), _NEVER)
        self._has_ended = torch.zeros(1, num_beams, dtype=torch.bool)
        self._improvable = torch.ones(1, 1, dtype=torch.bool)
        self._ended: list[Beam | None] = [None] * num_beams
        self.running = [Beam(None, 0, -1, text)] * num_beams
        self.in_flight = False
        self.done = False

    # --- On the device ---------------------------------------------------------------------------

    def candidates(self, logits: torch.Tensor) -> torch.Tensor:
        """The best continuations, or a random choice of them; waits for nothing.

        Args:
            logits: float32 [beams, vocab] of the running beams.

        Returns:
            float64 [2, candidates]: scores, which are NaN when the logits are not numbers, and
            places in [beams * vocab].
        """
        self._vocab_size = logits.shape[1]
        scores = torch.log_softmax(aligned(logits), dim=-1)[:, : self._vocab_size]
        if self._processors:
            scores = self._processors(self._ids, scores)
        valid = scores.amax(dim=-1).isfinite().all()
        so_far = upload(self._scores[0].tolist(), self._device, torch.float32)
        scores = (scores + so_far[:, None]).reshape(-1)
        if self._settings.hf.do_sample:
            # `torch.multinomial` without replacement, as `engine.sampling.sampler` describes it.
            noise = torch.empty_like(scores)
            fill([(self._noise, noise)])
            race = torch.softmax(scores, dim=-1).div_(noise)
            places = race.topk(self._num_candidates).indices
            best = scores.gather(0, places)
        else:
            best, places = scores.topk(self._num_candidates)
        self.in_flight = True
        return torch.stack([best.double().masked_fill(~valid, torch.nan), places.double()])

    # --- On the host -----------------------------------------------------------------------------

    def advance(self, candidates: torch.Tensor) -> Moves:
        """Choose the next beams and the finished ones to keep, as a step of `_beam_search` does.

        Args:
            candidates: what `candidates` returned, on the host.

        Raises:
            TaskExecutionError: the logits were not numbers.
        """
        self.in_flight = False
        scores = candidates[:1].float()
        if bool(scores.isnan().any()):
            raise invalid_logits()
        proposed = [self._extended(place) for place in candidates[1].long().tolist()]
        hits = torch.tensor([[self._ends(beam) for beam in proposed]])
        # transformers' functions only reorder sequences, so numbers can stand for them.
        num_beams = len(self.running)
        pool = [*self._ended, *proposed]
        numbers = torch.arange(len(pool))[None, :, None]
        ended, others = numbers[:, :num_beams], numbers[:, num_beams:]
        running, self._scores, _ = self._model._get_running_beams_for_next_iteration(
            topk_log_probs=scores,
            topk_running_sequences=others,
            topk_running_beam_indices=others,
            next_token_hits_stopping_criteria=hits,
            num_beams=num_beams,
        )
        ended, self._ended_scores, _, self._has_ended = self._model._update_finished_beams(
            sequences=ended,
            topk_running_sequences=others,
            beam_scores=self._ended_scores,
            topk_log_probs=scores,
            beam_indices=ended,
            topk_running_beam_indices=others,
            is_early_stop_heuristic_unsatisfied=self._improvable,
            is_sent_finished=self._has_ended,
            next_token_hits_stopping_criteria=hits,
            top_num_beam_mask=self._may_end,
            num_beams=num_beams,
            cur_len=self._num_tokens,  # without the prompt, of which only the length would count
            decoder_prompt_len=0,
            length_penalty=self._settings.hf.length_penalty,
            early_stopping=self._settings.hf.early_stopping,
        )
        before = self.running
        self.running = [beam for n in running.flatten().tolist() if (beam := pool[n]) is not None]
        self._ended = [pool[n] for n in ended.flatten().tolist()]
        self._num_tokens += 1
        self.done = not self._goes_on(hits)
        if self._processors and not self.done:
            self._extend_ids()
        return moves(before, [beam.parent for beam in self.running])

    def answers(self) -> list[list[int]]:
        """The tokens of the answers, best first."""
        best = self._ended[: self._settings.num_sequences]
        return [[] if beam is None else beam.token_ids for beam in best]

    def _extended(self, place: int) -> Beam:
        parent, token = divmod(place, self._vocab_size)
        before = self.running[parent]
        text = before.text
        if text is not None:
            text = text.fork()
            text.push(token)
        return Beam(before, parent, token, text)

    def _ends(self, beam: Beam) -> bool:
        return (
            beam.token in self._settings.eos_token_ids
            or self._num_tokens + 1 >= self._settings.max_new_tokens
            or (beam.text is not None and beam.text.stopped)
        )

    def _goes_on(self, hits: torch.Tensor) -> bool:
        early_stopping = self._settings.hf.early_stopping
        self._improvable = self._model._check_early_stop_heuristic(
            is_early_stop_heuristic_unsatisfied=self._improvable,
            running_beam_scores=self._scores,
            beam_scores=self._ended_scores,
            is_sent_finished=self._has_ended,
            cur_len=self._num_tokens,
            max_length=self._settings.max_new_tokens,
            decoder_prompt_len=0,
            early_stopping=early_stopping,
            length_penalty=self._settings.hf.length_penalty,
        )
        return bool(
            self._model._beam_search_has_unfinished_sequences(
                self._improvable, self._has_ended, hits, early_stopping
            )
        )

    def _extend_ids(self) -> None:
        parents = upload([beam.parent for beam in self.running], self._device)
        tokens = upload([beam.token for beam in self.running], self._device)
        self._ids = torch.cat([self._ids.index_select(0, parents), tokens[:, None]], dim=1)


def moves(before: Sequence[Beam], parents: Sequence[int]) -> Moves:
    """Give every new beam pages with the keys and values of its parent.

    The first child of a beam stays in its parent's pages. Other children take over the pages of
    beams that have no child, and the part that differs is copied: the tokens since the two beams
    separated, which are few. So every beam's pages stay its own and contiguous, and no reference
    counts are needed.

    Args:
        before: the beams of the last step.
        parents: for each new beam, the index of the old beam that it extends.
    """
    vacant = iter(sorted(set(range(len(before))) - set(parents)))
    homes: list[int] = []
    copies: list[Copy] = []
    for parent in parents:
        if parent not in homes:
            homes.append(parent)
            continue
        home = next(vacant)
        homes.append(home)
        if num_tokens := _parted(before[parent], before[home]):
            copies.append(Copy(parent, home, num_tokens))
    return Moves(homes, copies)


def _parted(one: Beam, other: Beam) -> int:
    """The number of tokens since two beams of equal length were one."""
    distance = 0
    while one is not other and one.before is not None and other.before is not None:
        one, other = one.before, other.before
        distance += 1
    return distance
