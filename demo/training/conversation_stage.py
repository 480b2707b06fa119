"""Training on conversations, with and without images."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import trange  # type: ignore[import-untyped]
from transformers import InternVLForConditionalGeneration, Qwen2Tokenizer

from demo.data.conversations import Conversation, image_conversation, text_conversation
from demo.data.shapes import Drawing
from demo.training.architecture import ImageHead
from demo.training.model_files import render
from demo.training.vision_stage import image_loss, optimizer_for, pixel_values

IMAGE_CHUNKS, TEXT_CHUNKS = 2, 3  # forwards a step; rows of like length share one
WARM_UP = 60  # steps
IMAGE_HEAD_WEIGHT = 0.5


@dataclass(frozen=True)
class Plan:
    """Length, contents and learning rate of one stage."""

    name: str
    steps: int
    image_rows: int  # conversations with images in a step
    text_rows: int  # conversations without
    peak: float  # learning rate after the warm-up
    text_mix: Mapping[str, int]  # of the text rows
    constant: float  # share of the steps before the learning rate falls
    final: float  # learning rate at the end; a cosine leads there
    pairs: float = 0.2  # share of the image rows that are about two images
    restart: tuple[int, int] | None = None
    """(step, length): before `step` the schedule is that of a stage of `length` steps."""

    def scaled(self, scale: float) -> "Plan":
        """The same plan, `scale` times as long."""
        restart = self.restart and (round(self.restart[0] * scale), round(self.restart[1] * scale))
        return replace(self, steps=round(self.steps * scale), restart=restart)

    def learning_rate(self, step: int) -> float:
        """Warm-up, constant, cosine; and again from the restart on, without the warm-up."""
        if step < WARM_UP:
            return self.peak * (step + 1) / WARM_UP
        steps = self.steps
        if self.restart is not None and step < self.restart[0]:
            steps = self.restart[1]
        progress = max(0.0, step / steps - self.constant) / (1 - self.constant)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Row:
    """One tokenized conversation."""

    ids: list[int]
    is_target: list[bool]
    """Whether the token is to be learned: the answers and the end of their turns."""
    drawings: list[Drawing]


class Encoder:
    """Turns conversations into rows, with the chat template and the image tokens of serving."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._header = tokenizer("<|im_start|>assistant\n").input_ids

    def __call__(self, conversation: Conversation) -> Row:
        """Tokens and targets of one conversation."""
        ids = self._tokenizer(render(self._tokenizer, conversation.messages())).input_ids
        return Row(ids, self._targets(ids), conversation.drawings)

    def _targets(self, ids: list[int]) -> list[bool]:
        """True from after every assistant header to the end of its turn, inclusive."""
        targets, inside = [False] * len(ids), False
        for i, token in enumerate(ids):
            targets[i] = inside
            if inside:
                inside = token != self._tokenizer.eos_token_id
            else:
                inside = ids[max(0, i + 1 - len(self._header)) : i + 1] == self._header
        return targets


def _chunks(rows: Sequence[Row], count: int) -> list[list[Row]]:
    """The rows by length, cut into `count` parts of nearly equal number."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    cuts = [round(i * len(ordered) / count) for i in range(count + 1)]
    return [ordered[start:end] for start, end in pairwise(cuts)]


def _chunk_loss(
    model: InternVLForConditionalGeneration, head: ImageHead, rows: Sequence[Row]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of the token losses over the rows, and mean image loss (0 without images).

    Rows are padded at the right and no attention mask is passed: no token attends to its right, so
    the padding changes nothing, and the plain causal kernel is the fastest.
    """
    width = max(len(row.ids) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    is_target = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        is_target[i, : len(row.ids)] = torch.tensor(row.is_target)

    embeddings = model.get_input_embeddings()(ids)  # [rows, width, hidden]
    seen = torch.zeros(())
    images = [image for row in rows for image in row.drawings]
    if images:
        features = model.model.get_image_features(pixel_values(images)).pooler_output
        seen, _ = image_loss(head, features, images)
        places = (ids == model.config.image_token_id).unsqueeze(-1)
        embeddings = embeddings.masked_scatter(places, features)
    hidden = model.model.language_model(inputs_embeds=embeddings, use_cache=False)[0]
    # The output at one position predicts the token at the next.
    logits = model.lm_head(hidden[:, :-1][is_target[:, 1:]])  # [targets, vocabulary]
    return cross_entropy(logits, ids[:, 1:][is_target[:, 1:]], reduction="sum"), seen


def _backward(
    model: InternVLForConditionalGeneration, head: ImageHead, rows: Sequence[Row], chunks: int
) -> float:
    """Adds the gradients of one group of rows; returns its mean loss a token."""
    targets = sum(sum(row.is_target) for row in rows)
    total = 0.0
    for chunk in _chunks(rows, chunks):
        spoken, seen = _chunk_loss(model, head, chunk)
        loss = 0.5 * spoken / targets + IMAGE_HEAD_WEIGHT * seen / chunks
        loss.backward()
        total += spoken.item() / targets
    return total


class ConversationTraining:
    """A stage of training on conversations; it can be stopped and resumed from its `state`."""

    def __init__(
        self,
        model: InternVLForConditionalGeneration,
        head: ImageHead,
        tokenizer: Qwen2Tokenizer,
        plan: Plan,
        seed: int,
    ) -> None:
        self._model, self._head = model, head
        self._encode = Encoder(tokenizer)
        self._plan, self._seed = plan, seed
        self._optimizer = optimizer_for([model, head], plan.peak)
        self._parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        self._step = 0

    def state(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "model": self._model.state_dict(),
            "head": self._head.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "step": self._step,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Goes back to a state."""
        self._model.load_state_dict(state["model"])
        self._head.load_state_dict(state["head"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._step = state["step"]

    def run(self, *, every: int, checkpoint: Callable[[], None]) -> None:
        """Trains to the end of the plan; calls `checkpoint` every `every` steps and at the end."""
        plan = self._plan
        progress = trange(self._step, plan.steps, desc=plan.name, mininterval=10)
        for step in progress:
            # Each step has its own generator, so that a resumed run draws what it would have drawn.
            rng = random.Random(f"{plan.name} {self._seed} {step}")
            images = [
                self._encode(image_conversation(rng, plan.pairs)) for _ in range(plan.image_rows)
            ]
            texts = [
                self._encode(text_conversation(rng, plan.text_mix)) for _ in range(plan.text_rows)
            ]
            for group in self._optimizer.param_groups:
                group["lr"] = plan.learning_rate(step)
            self._optimizer.zero_grad()
            losses = {"text": _backward(self._model, self._head, texts, TEXT_CHUNKS)}
            if images:
                losses["images"] = _backward(self._model, self._head, images, IMAGE_CHUNKS)
            nn.utils.clip_grad_norm_(self._parameters, 1.0)
            self._optimizer.step()
            self._step = step + 1
            if step % 20 == 0:
                progress.set_postfix(losses)
            if self._step % every == 0 or self._step == plan.steps:
                checkpoint()
