"""Measures the demo model: `python -m demo.evaluate --model demo/model [--quantize-bits 8]`.

Every answer is generated greedily by `transformers` and compared to the letter. Images come from
held-out seeds. Questions come from generators that training does not use, but small skills (the
sums, the words to spell, the questions about the project) draw from lists that training has seen
completely. "free questions" are written by hand and are not in any training template.
"""

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import (
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoTokenizer,
    BitsAndBytesConfig,
)

from demo.data.conversations import (
    COMPARING_MIX,
    Conversation,
    draw_text_turn,
    pair_turn,
    single_turn,
)
from demo.data.image_skills import IMAGE_SKILLS, PAIR_SKILLS, WHAT
from demo.data.knowledge import FALLBACK
from demo.data.shapes import HELD_OUT_SEED, draw_image
from demo.data.turns import Turn
from demo.data.words import lines
from demo.training.model_files import render

BATCH = 50  # conversations that are generated together
LONGEST_ANSWER = 220  # tokens
# Quantization covers the linear layers of the language model; the head shares its weights with
# the embeddings and has to stay as it is.
NOT_QUANTIZED = ["lm_head", "model.vision_tower", "model.multi_modal_projector"]

FREE_QUESTIONS = lines("free_questions")


def _images(skill: str, i: int) -> Conversation:
    rng = random.Random(f"evaluate {skill} {i}")
    return Conversation((single_turn(rng, skill, draw_image(HELD_OUT_SEED + i)),))


def _what(i: int) -> Conversation:
    drawing = draw_image(HELD_OUT_SEED + i)
    return Conversation((Turn(WHAT, drawing.description, (drawing,)),))


def _follow_up(i: int) -> Conversation:
    """A second question about an image of the first turn."""
    rng = random.Random(f"evaluate follow-up {i}")
    drawing = draw_image(HELD_OUT_SEED + i)
    first = single_turn(rng, rng.choice(["what", "colour", "shape"]), drawing)
    second = IMAGE_SKILLS[rng.choice(["what", "colour", "shape"])](rng, drawing)
    return Conversation((first, second))


def _pairs(skill: str, i: int) -> Conversation:
    rng = random.Random(f"evaluate {skill} {i}")
    seeds = HELD_OUT_SEED + 2 * i, HELD_OUT_SEED + 2 * i + 1
    return Conversation((pair_turn(rng, skill, seeds),))


def _text(skill: str, i: int) -> Conversation:
    return Conversation((draw_text_turn(random.Random(f"evaluate {skill} {i}"), skill),))


def _third_turn(i: int) -> Conversation:
    """A system prompt, an introduction, another turn, and a last one that may need the first."""
    rng = random.Random(f"evaluate third turn {i}")
    turns = [draw_text_turn(rng, "introduce")]
    turns.append(draw_text_turn(rng, rng.choice(["add", "greet", "faq", "repeat"])))
    turns.append(draw_text_turn(rng, rng.choice(["recall name", "count", "spell"]), turns))
    return Conversation(tuple(turns), system="You are a helpful assistant.")


def skills(drawings: int, others: int) -> Iterator[tuple[str, list[Conversation]]]:
    """Name and conversations of every skill; the model generates the last answer of each."""
    yield WHAT, [_what(i) for i in range(drawings)]
    for name in IMAGE_SKILLS:
        yield f"one image: {name}", [_images(name, i) for i in range(others)]
    yield "one image: follow-up", [_follow_up(i) for i in range(others)]
    for name in PAIR_SKILLS:
        yield f"two images: {name}", [_pairs(name, i) for i in range(others)]
    for name in COMPARING_MIX:
        yield f"text: {name}", [_text(name, i) for i in range(others)]
    yield "text: third turn", [_third_turn(i) for i in range(others)]
    yield "text: free questions", [Conversation((Turn(q, FALLBACK),)) for q in FREE_QUESTIONS]


class Answerer:
    """Answers conversations with the files of a model folder."""

    def __init__(self, folder: Path, dtype: torch.dtype, quantize_bits: int | None) -> None:
        quantization = None
        if quantize_bits is not None:
            quantization = BitsAndBytesConfig(
                load_in_8bit=quantize_bits == 8,
                load_in_4bit=quantize_bits == 4,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=NOT_QUANTIZED,
            )
        self._model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, quantization_config=quantization
        )
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._image_processor = AutoImageProcessor.from_pretrained(folder)

    def __call__(self, conversations: Sequence[Conversation]) -> list[str]:
        """The generated last answer of each conversation; its text is without special tokens."""
        prompts = [
            render(self._tokenizer, conversation.messages()[:-1], ask=True)
            for conversation in conversations
        ]
        inputs = dict(self._tokenizer(prompts, padding=True, return_tensors="pt"))
        images = [drawing.image for talk in conversations for drawing in talk.drawings]
        if images:
            pixels = self._image_processor(images, return_tensors="pt")["pixel_values"]
            inputs["pixel_values"] = pixels.to(self._model.dtype)
        with torch.inference_mode():
            output = self._model.generate(**inputs, max_new_tokens=LONGEST_ANSWER)
        answers = output[:, inputs["input_ids"].shape[1] :]  # [conversations, new tokens]
        return list(self._tokenizer.batch_decode(answers, skip_special_tokens=True))


def measure(answer: Answerer, conversations: Sequence[Conversation], *, failures: bool) -> float:
    """The share of conversations whose last answer is right to the letter."""
    right = 0
    for start in range(0, len(conversations), BATCH):
        batch = conversations[start : start + BATCH]
        for conversation, text in zip(batch, answer(batch), strict=True):
            turn = conversation.turns[-1]
            right += turn.accepts(text)
            if failures and not turn.accepts(text):
                tqdm.write(f"  {turn.question!r}: {text!r}, not {turn.answer!r}")
    return right / len(conversations)


def main() -> None:
    """Reads the command line and prints one line a skill."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, default=Path(__file__).parent / "model")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--quantize-bits", type=int, choices=[8, 4])
    parser.add_argument("--images", type=int, default=1000, help=f'conversations for "{WHAT}"')
    parser.add_argument("--others", type=int, default=200, help="conversations of each other skill")
    parser.add_argument("--failures", action="store_true", help="print every wrong answer")
    arguments = parser.parse_args()
    answer = Answerer(arguments.model, getattr(torch, arguments.dtype), arguments.quantize_bits)
    for name, conversations in skills(arguments.images, arguments.others):
        accuracy = measure(answer, conversations, failures=arguments.failures)
        print(f"{name:28} {len(conversations):5} {accuracy:7.1%}", flush=True)


if __name__ == "__main__":
    main()
