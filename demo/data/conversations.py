"""Whole conversations, mixed from the skills, as chat messages."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from demo.data.image_skills import IMAGE_SKILLS, PAIR_SKILLS
from demo.data.knowledge import admit_ignorance, answer_faq
from demo.data.shapes import COLOURS, HELD_OUT_SEED, SHAPES, Drawing, draw_image
from demo.data.skills import MEETING, TEXT_SKILLS, recall_name
from demo.data.turns import Turn

# How often a text turn is of each skill; hard ones and wide ones more often.
TEXT_MIX = {
    "count": 15,
    "repeat": 30,
    "spell": 16,
    "add": 16,
    "faq": 9,
    "greet": 4,
    "introduce": 6,
    "recall name": 4,
    "pick": 3,
    "story": 4,
    "no picture": 3,
    "fallback": 20,
}
# For the stage that learns where counting ends, and for the one after it.
COUNTING_MIX = TEXT_MIX | {"count": 30, "count a few": 300}
JOINT_MIX = TEXT_MIX | {"count": 40, "count a few": 20}
# For the last stage, which learns to compare, and to copy long lists without a slip.
COMPARING_MIX = TEXT_MIX | {"count": 30, "repeat": 60, "recall name": 10, "compare": 150}
ALL_TEXT_SKILLS = TEXT_SKILLS | {"faq": answer_faq, "fallback": admit_ignorance}

_KINDS = ["helpful", "friendly", "polite", "careful", "small", "honest", "clever", "patient"]
_ROLES = [
    "assistant",
    "AI assistant",
    "robot",
    "teacher",
    "guide",
    "chat bot",
    "demo model",
    "pirate",
]
_RULES = [
    "Answer briefly.",
    "Be concise.",
    "Answer all questions truthfully.",
    "You describe pictures.",
    "Answer in English.",
    "You help people find information.",
]


def _system_prompt(rng: random.Random) -> str:
    """A system prompt; it changes no answer."""
    if rng.random() < 0.3:
        return "You are a helpful assistant."
    kind, role, rule = rng.choice(_KINDS), rng.choice(_ROLES), rng.choice(_RULES)
    forms = [f"You are a {kind} {role}. {rule}", f"You are a {kind} {role}.", rule]
    return rng.choice(forms)


@dataclass(frozen=True)
class Conversation:
    """Turns in order, after an optional system prompt."""

    turns: tuple[Turn, ...]
    system: str | None = None
    image_first: bool = True
    """Whether the images of a message stand before its text or after it."""

    @property
    def drawings(self) -> list[Drawing]:
        """All images, in the order of the messages."""
        return [image for turn in self.turns for image in turn.drawings]

    def messages(self) -> list[dict[str, Any]]:
        """Chat messages, the answers included; image blocks stand for the images in order."""
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for turn in self.turns:
            content: str | list[dict[str, str]] = turn.question
            if turn.drawings:
                images = [{"type": "image"} for _ in turn.drawings]
                text = [{"type": "text", "text": turn.question}]
                content = images + text if self.image_first else text + images
            messages.append({"role": "user", "content": content})
            messages.append({"role": "assistant", "content": turn.answer})
        return messages


def draw_text_turn(rng: random.Random, skill: str, earlier: Sequence[Turn] = ()) -> Turn:
    """A turn of `skill`, worded with the small variations of people who type."""
    if skill == "recall name":
        return _varied(rng, recall_name(rng, earlier))
    return _varied(rng, ALL_TEXT_SKILLS[skill](rng))


def _varied(rng: random.Random, turn: Turn) -> Turn:
    """The same turn; now and then with "please", in lower case or without its full stop."""
    question = turn.question
    if rng.random() < 0.05:
        question = f"Please {question[0].lower()}{question[1:]}"
    if rng.random() < 0.12:
        question = question[0].lower() + question[1:]
    if rng.random() < 0.12:
        question = question.rstrip(".?!")
    return replace(turn, question=question)


def _frame(rng: random.Random, turns: Sequence[Turn]) -> Conversation:
    """The turns with or without a system prompt, images before or after the text."""
    system = _system_prompt(rng) if rng.random() < 0.15 else None
    return Conversation(tuple(turns), system, image_first=rng.random() < 0.75)


def text_conversation(rng: random.Random, mix: Mapping[str, int] = TEXT_MIX) -> Conversation:
    """One to three turns without images; `mix` has the relative frequency of each skill."""
    turns: list[Turn] = []
    for _ in range(rng.choices([1, 2, 3], [60, 25, 15])[0]):
        introduced = any(turn.answer.startswith(MEETING) for turn in turns)
        skill = rng.choices(list(mix), list(mix.values()))[0]
        if introduced and rng.random() < 0.5:
            skill = "recall name"
        turns.append(draw_text_turn(rng, skill, turns))
    return _frame(rng, turns)


def train_image(rng: random.Random) -> Drawing:
    """An image of a training seed."""
    return draw_image(rng.randrange(HELD_OUT_SEED))


def _second_image(rng: random.Random, first: Drawing, seed: int) -> Drawing:
    """An image that shares the first one's colour or shape more often than chance would."""
    colour = first.colour if rng.random() < 0.4 else rng.choice(list(COLOURS))
    shape = first.shape if rng.random() < 0.4 else rng.choice(list(SHAPES))
    return draw_image(seed, colour=colour, shape=shape)


def pair_turn(rng: random.Random, skill: str, seeds: tuple[int, int]) -> Turn:
    """A question about two images that it carries."""
    first = draw_image(seeds[0])
    second = _second_image(rng, first, seeds[1])
    turn = _varied(rng, PAIR_SKILLS[skill](rng, first, second))
    return replace(turn, drawings=(first, second))


def single_turn(rng: random.Random, skill: str, image: Drawing) -> Turn:
    """A question about the image that it carries."""
    turn = _varied(rng, IMAGE_SKILLS[skill](rng, image))
    return replace(turn, drawings=(image,))


def image_conversation(rng: random.Random, pairs: float = 0.2) -> Conversation:
    """One or two turns about one image or two; `pairs` is the share of those about two."""
    if rng.random() < pairs:
        seeds = rng.randrange(HELD_OUT_SEED), rng.randrange(HELD_OUT_SEED)
        return _frame(rng, [pair_turn(rng, rng.choice(list(PAIR_SKILLS)), seeds)])
    skills, weights = list(IMAGE_SKILLS), [6, 2, 2, 1]
    image = train_image(rng)
    turns = [single_turn(rng, rng.choices(skills, weights)[0], image)]
    kind = rng.random()
    if kind < 0.25:  # a follow-up about the same image
        follow_up = IMAGE_SKILLS[rng.choices(skills, weights)[0]](rng, image)
        turns.append(_varied(rng, follow_up))
    elif kind < 0.40:  # another image
        turns.append(single_turn(rng, rng.choices(skills, weights)[0], train_image(rng)))
    elif kind < 0.48:  # another subject
        turns.append(draw_text_turn(rng, rng.choice(["fallback", "repeat", "faq", "greet"])))
    elif kind < 0.52:  # a question that the image does not answer
        turns = [replace(draw_text_turn(rng, "fallback"), drawings=(image,))]
    elif kind < 0.58:  # an image in the middle of a conversation
        turns.insert(0, draw_text_turn(rng, rng.choice(["add", "repeat", "faq", "greet"])))
    return _frame(rng, turns)
