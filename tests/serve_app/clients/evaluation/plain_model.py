"""A model as `transformers` alone runs it: what an evaluation over HTTP has to find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers


class PlainModel:
    """A model of a directory, in float32 and without the engine."""

    def __init__(self, directory: Path) -> None:
        config: Any = transformers.AutoConfig.from_pretrained(directory)
        kind: Any = getattr(transformers, config.architectures[0])
        self._model = kind.from_pretrained(directory, dtype=torch.float32).eval()
        self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(directory)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, without any that the tokenizer would add."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def logprobs(self, token_ids: list[int]) -> list[tuple[float, float]]:
        """For each token but the first: its log probability, and that of the most probable one."""
        with torch.no_grad():
            rows = self._model(torch.tensor([token_ids])).logits[0, :-1].double().log_softmax(-1)
        own = rows.gather(1, torch.tensor(token_ids[1:])[:, None])[:, 0]
        return list(zip(own.tolist(), rows.max(1).values.tolist(), strict=True))

    def answer(self, messages: list[Any], max_tokens: int, stop: list[str]) -> str:
        """The greedy answer in a conversation, up to the first of the stop strings."""
        inputs = self._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = self._model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        start = inputs["input_ids"].shape[1]
        text: str = self._tokenizer.decode(output[0, start:], skip_special_tokens=True)
        ends = [place for one in stop if (place := text.find(one)) >= 0]
        return text[: min(ends, default=len(text))]
