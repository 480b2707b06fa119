"""What the response of a task says of its prompt: text, token ids, and log probabilities."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence
from math import isnan

from engine.requests.outputs import PromptOutput
from engine.requests.prompt import Prompt
from engine.sampling.logprobs import TokenTexts
from engine.sampling.sampler import invalid_logits
from schema.answers.response import PromptTokenLogprob
from schema.errors import TaskArgsInvalid
from schema.generation import MAX_PROMPT_LOGPROBS


class PromptReport:
    """Collects what is reported of one prompt. Belongs to the engine's thread once it runs.

    Attributes:
        num_top: alternatives to report with each token; None to report no log probabilities.
    """

    def __init__(
        self,
        prompt: Prompt,
        texts: TokenTexts,
        *,
        echo: bool,
        token_ids: bool,
        num_top: int | None,
    ) -> None:
        """Begin a report.

        Args:
            prompt: with its text.
            texts: of the model's tokens.
            echo: whether the text is reported.
            token_ids: whether the ids of its tokens are.
            num_top: see the class.

        Raises:
            TaskArgsInvalid: the report would be too long.
        """
        self._prompt = prompt
        self._texts = texts
        self._text = prompt.text if echo else None
        self._token_ids = prompt.token_ids if token_ids else None
        self.num_top = num_top
        self._entries: list[PromptTokenLogprob] = []
        self._reported = False
        if num_top is None:
            return
        num_tokens = len(prompt.token_ids)
        if num_tokens * (1 + num_top) > MAX_PROMPT_LOGPROBS:
            raise TaskArgsInvalid(
                f"generation_config.prompt_logprobs is {num_top}, for a prompt of {num_tokens} "
                f"tokens; tokens times (1 + prompt_logprobs) may be at most {MAX_PROMPT_LOGPROBS}: "
                "ask for fewer, or shorten the prompt",
                param="generation_config.prompt_logprobs",
            )

    def targets(self, start: int, stop: int) -> Sequence[int]:
        """The tokens that the rows of a chunk ``start .. stop`` of the prompt predict.

        Each row predicts the next token; the prompt's last row predicts none of the prompt's. Empty
        if no log probabilities are reported.
        """
        if self.num_top is None:
            return ()
        return self._prompt.token_ids[start + 1 : stop + 1]

    def add(self, rows: Sequence[Sequence[float]]) -> None:
        """Add the next rows of `Logprobs.of`, in the order of the prompt.

        Raises:
            TaskExecutionError: these are not numbers.
        """
        token_ids = self._prompt.token_ids
        if not self._entries:
            self._entries.append(self._texts.first_entry(token_ids[0]))
        for row in rows:
            if isnan(row[0]):
                raise invalid_logits()
            token_id = token_ids[len(self._entries)]
            self._entries.append({**self._texts.entry(token_id, row), "text_offset": 0})

    def take(self) -> PromptOutput | None:
        """What is reported of the prompt: once, when all of it has been added."""
        if self._reported:
            return None
        self._reported = True
        if self.num_top is None:
            return PromptOutput(self._text, self._token_ids, None)
        if not self._entries:  # of a prompt of one token
            self.add(())
        assert len(self._entries) == len(self._prompt.token_ids)
        self._place(self._prompt.text)
        return PromptOutput(self._text, self._token_ids, self._entries)

    def _place(self, text: str) -> None:
        """Say where in the prompt's text its tokens begin: where those before them end.

        A token that begins within a character begins after that character.
        """
        end = 0
        if self._prompt.text_ends is not None:
            for entry, stop in zip(self._entries, self._prompt.text_ends, strict=True):
                entry["text_offset"] = end
                end = max(end, stop)
            return
        decoder = getincrementaldecoder("utf-8")("replace")
        spelled = ""
        for entry in self._entries:
            within_character = bool(decoder.getstate()[0])
            entry["text_offset"] = len(spelled) + within_character
            spelled += decoder.decode(bytes(entry["bytes"] or ()))
        # Some tokenizers drop the space before the first word of a text.
        surplus = int(spelled.startswith(" ") and not text.startswith(" "))
        for entry in self._entries:
            entry["text_offset"] = min(max(entry["text_offset"] - surplus, 0), len(text))
