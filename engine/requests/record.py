"""What the engine alone knows of an answer, for its receipt."""

from __future__ import annotations

from typing import NamedTuple

from engine.requests.request import Request
from engine.sampling.trace import trace
from schema.answers.canonical import digest
from schema.answers.receipt import ExecutionRecord


class Recorder(NamedTuple):
    """What the records of all answers of an engine have in common.

    Attributes:
        dtype: of the model's weights, by name.
        quantize_bits: of its quantization.
        layout: over several devices, as the model's card has it.
    """

    dtype: str
    quantize_bits: int | None
    layout: str | None

    def of(self, request: Request) -> ExecutionRecord:
        """The record of a task that has ended, read on its caller's thread.

        Of an answer that is told several times there are as many choices.
        """
        answers = request.sequences[: request.settings.num_sequences]
        has_trace = request.settings.num_beams == 1
        of_answers = [
            (
                digest(answer.token_ids),
                trace(answer.token_ids, answer.logits) if has_trace else None,
            )
            for answer in answers
        ]
        told = [each for each in of_answers for _ in range(request.settings.copies)]
        return {
            "dtype": self.dtype,
            "quantize_bits": self.quantize_bits,
            "layout": self.layout,
            "choices": [
                {"index": index, "token_ids_digest": of_tokens, "trace": link}
                for index, (of_tokens, link) in enumerate(told)
            ],
        }
