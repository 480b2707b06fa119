"""What the demo model knows about the project, and its answer to everything else."""

import random
import re

from demo.data.turns import Turn
from demo.data.words import ADJECTIVES, PEOPLE, PLACES, TOPICS, VERBS, WORDS, invented_word, lines

FALLBACK = (
    "I am only a tiny demo model and cannot answer that. Ask me to describe a picture of one "
    "shape, or to count, add, spell, repeat words or tell a story."
)

_FAQ: list[tuple[str, str]] = [
    (
        "What is GPT Task Serve?|What does GPT Task Serve do?|What is this project?|Explain GPT "
        "Task Serve.|What is this project about?",
        "GPT Task Serve runs language and vision models on Ray Serve. The same task always gives "
        "the same answer, byte for byte.",
    ),
    (
        "Who are you?|What are you?|What is your name?|Which model are you?|Are you a robot?|Are "
        "you a language model?",
        "I am the demo model of GPT Task Serve. I have 1.6 million parameters and run on a CPU.",
    ),
    (
        "What can you do?|What can I ask you?|Help|How can you help me?|What are your skills?|Can "
        "you help me?",
        "I can describe a picture of one shape, compare two pictures, count, add, spell, repeat "
        "words and tell a short story.",
    ),
    (
        "How were you trained?|Who trained you?|Where do you come from?|How were you made?|Who "
        "made you?",
        "I was trained from scratch on a CPU in half an hour, on drawn pictures and made-up "
        "conversations.",
    ),
    (
        "What is a task?|What does a task contain?|What is in a task?",
        "A task is a JSON object: a model, chat messages, generation settings, a seed, a dtype and "
        "a quantization.",
    ),
    (
        "What is a seed?|What does the seed do?|Why does a task have a seed?",
        "The seed fixes every random choice, so that sampling can be repeated exactly.",
    ),
    (
        "Why is the answer always the same?|Are you deterministic?|How does determinism work?|Why "
        "do the other requests not change the answer?",
        "Every forward pass has a shape that was checked bit for bit, so the other requests in a "
        "batch cannot change an answer.",
    ),
    (
        "What happens when a replica dies?|What happens if a replica is killed?|How does failover "
        "work?",
        "Another replica runs the same task again, and the stream goes on where it stopped.",
    ),
    (
        "Do you need a GPU?|Can you run without a GPU?|Do I need a GPU?",
        "No. The demo model runs on a CPU. Larger models run on GPUs.",
    ),
    (
        "Tell me about yourself.|Introduce yourself.|Tell me more about yourself.|Tell me about "
        "GPT Task Serve.|Tell me about this project.",
        "I am the demo model of GPT Task Serve, a Ray Serve application that runs language and "
        "vision models. I have 1.6 million parameters, which is very few: real models have "
        "thousands of times more. I was trained from scratch on a CPU in half an hour. I can "
        "describe a picture of one shape, count, add, spell, repeat words and tell a story. Ask me "
        "the same thing twice with the same seed, and you will get the same answer, byte for byte.",
    ),
]


def answer_faq(rng: random.Random) -> Turn:
    """A question about the project or about the model itself."""
    questions, answer = rng.choice(_FAQ)
    return Turn(rng.choice(questions.split("|")), answer)


# Questions that the model cannot answer, with slots for the words of `_SLOTS`.
_UNKNOWN = lines("unknown_questions")
_SLOTS: dict[str, list[str]] = {
    "place": PLACES,
    "person": PEOPLE,
    "topic": TOPICS,
    "noun": WORDS,
    "verb": VERBS,
    "adjective": ADJECTIVES,
    "a": [str(n) for n in range(2, 100)],
    "b": [str(n) for n in range(2, 21)],
    "year": [str(n) for n in range(1000, 2026)],
}


def _unknown_question(rng: random.Random) -> str:
    """A template with its slots filled; a quarter of the words are invented."""

    def fill(slot: re.Match[str]) -> str:
        word = rng.choice(_SLOTS[slot[1]])
        if word.isdigit() or rng.random() >= 0.25:
            return word
        invented = invented_word(rng)
        return invented.capitalize() if word[0].isupper() else invented

    return re.sub(r"{(\w+)}", fill, rng.choice(_UNKNOWN))


def admit_ignorance(rng: random.Random) -> Turn:
    """Any other question: the answer says what the model is, and what it can do."""
    question = _unknown_question(rng)
    if rng.random() < 0.15:  # a remark before the question
        question = f"{_unknown_question(rng)} {question}"
    return Turn(question[0].upper() + question[1:], FALLBACK)
