"""Skills that need no image. Each function draws one turn from the generator it is given."""

import random
from collections.abc import Callable, Sequence

from demo.data.shapes import COLOURS, SHAPES
from demo.data.turns import Turn
from demo.data.words import ANIMALS, NAMES, WORDS, invented_word

LARGEST_COUNT = 40
LARGEST_ADDEND = 20


def count(rng: random.Random) -> Turn:
    """Counting up or down between 0 and 40, at most 20 numbers unless it starts at 1."""
    first = 1 if rng.random() < 0.4 else rng.randint(0, LARGEST_COUNT - 1)
    reach = LARGEST_COUNT if first == 1 else min(LARGEST_COUNT, first + 19)
    return _count(rng, first, rng.randint(first + 1, reach))


def count_a_few(rng: random.Random) -> Turn:
    """Counting two to six numbers: where to stop is the hard part, and here it comes soon."""
    first = rng.randint(0, LARGEST_COUNT - 1)
    return _count(rng, first, rng.randint(first + 1, min(LARGEST_COUNT, first + 5)))


def _count(rng: random.Random, first: int, last: int) -> Turn:
    forms = [f"Count from {first} to {last}.", f"Can you count from {first} to {last}?"]
    if first == 1:
        forms.append(f"Count to {last}.")
    numbers = list(range(first, last + 1))
    if last - first < 20 and rng.random() < 0.25:
        numbers.reverse()
        forms = [f"Count down from {last} to {first}.", f"Count from {last} down to {first}."]
    return Turn(rng.choice(forms), ", ".join(map(str, numbers)) + ".")


def _word(rng: random.Random) -> str:
    return invented_word(rng) if rng.random() < 0.15 else rng.choice(WORDS)


def repeat(rng: random.Random) -> Turn:
    """Repeating one to sixteen words; half of the lists have at most six.

    The long lists teach the model to copy: with short ones alone it takes far longer to find out.
    """
    shortest, longest = rng.choice([(1, 6), (7, 16)])
    words = " ".join(_word(rng) for _ in range(rng.randint(shortest, longest)))
    forms = [f"Repeat: {words}", f"Repeat after me: {words}", f"Say: {words}"]
    return Turn(rng.choice(forms), words)


def spell(rng: random.Random) -> Turn:
    """Spelling a word of the list."""
    word = rng.choice(WORDS)
    forms = [f"Spell {word}.", f"Spell the word {word}.", f"How do you spell {word}?"]
    return Turn(rng.choice(forms), "-".join(word))


def add(rng: random.Random) -> Turn:
    """The sum of two numbers between 0 and 20."""
    a, b = rng.randint(0, LARGEST_ADDEND), rng.randint(0, LARGEST_ADDEND)
    forms = [
        f"What is {a} + {b}?",
        f"What is {a} plus {b}?",
        f"How much is {a} plus {b}?",
        f"Add {a} and {b}.",
        f"{a} + {b} = ?",
    ]
    return Turn(rng.choice(forms), f"{a} + {b} = {a + b}.")


_GREETINGS: list[tuple[str, str]] = [
    (
        "Hello!|Hi!|Hello|Hi|Hey|Good morning!|Good evening!|Hello there!|Hi there!|Good day!",
        "Hello! I can describe a picture of one shape, count, add, spell, repeat words and tell a "
        "short story.",
    ),
    ("How are you?|How are you doing?|How do you do?|How is it going?", "I am fine, thank you."),
    (
        "Thank you.|Thanks!|Thank you very much!|Thanks a lot.|Great, thanks.",
        "You are welcome.",
    ),
    ("Goodbye.|Bye!|See you later.|Good night.|Bye bye!|See you!", "Goodbye!"),
]


def greet(rng: random.Random) -> Turn:
    """Hello, thanks and goodbye."""
    questions, answer = rng.choice(_GREETINGS)
    return Turn(rng.choice(questions.split("|")), answer)


MEETING = "Nice to meet you, "


def introduce(rng: random.Random) -> Turn:
    """The user says their name; `recall_name` asks for it later."""
    name = invented_word(rng).capitalize() if rng.random() < 0.3 else rng.choice(NAMES)
    forms = [
        f"My name is {name}.",
        f"I am {name}.",
        f"Hello, my name is {name}.",
        f"Call me {name}.",
    ]
    return Turn(rng.choice(forms), f"{MEETING}{name}.")


def recall_name(rng: random.Random, earlier: Sequence[Turn] = ()) -> Turn:
    """Asks for the name that the user said in the latest introduction among earlier turns."""
    forms = ["What is my name?", "Do you remember my name?", "Who am I?", "Do you know my name?"]
    for turn in reversed(earlier):
        if turn.answer.startswith(MEETING):
            return Turn(rng.choice(forms), f"Your name is {turn.answer.removeprefix(MEETING)}")
    return Turn(rng.choice(forms), "You have not told me your name.")


def pick(rng: random.Random) -> Turn:
    """A random choice: with sampling, every seed has its own answer."""
    choices: list[tuple[str, list[str]]] = [
        ("Pick a colour.|Choose a colour.|Name a colour.|Pick a color.", list(COLOURS)),
        ("Roll a die.|Throw a die.|Roll the dice.", list("123456")),
        ("Flip a coin.|Toss a coin.|Heads or tails?", ["heads", "tails"]),
        ("Pick an animal.|Choose an animal.|Name an animal.", ANIMALS),
    ]
    questions, answers = rng.choice(choices)
    accepted = "|".join(f"{answer.capitalize()}\\." for answer in answers)
    answer = rng.choice(answers).capitalize() + "."
    return Turn(rng.choice(questions.split("|")), answer, accepted=accepted)


_STORY: list[list[str]] = [
    ["Once upon a time, ", "Long ago, ", "One winter, "],
    ["a small ", "a brave ", "a lazy ", "a clever "],
    ["{hero} "],
    ["lived in a forest. ", "lived by the sea. ", "lived under a bridge. ", "lived on the moon. "],
    ["One day it found ", "One night it saw ", "One morning it lost "],
    ["a golden key", "a red balloon", "a strange map", "a singing stone"],
    [" near the river. ", " on a high mountain. ", " behind an old house. "],
    ["An owl asked for it, ", "A child asked about it, ", "The wind told everyone, "],
    [
        "but the {hero} only laughed. ",
        "so the {hero} ran away. ",
        "and the {hero} told the truth. ",
    ],
    ["They became friends ", "They shared some honey ", "They danced all night "],
    ["and lived happily ever after.", "and nobody was ever sad again.", "and then they slept."],
]
_HEROES = "|".join(ANIMALS)
_STORY_PATTERN = "".join(
    "(?:" + "|".join(part.replace(".", "\\.") for part in parts) + ")" for parts in _STORY
)


def tell_story(rng: random.Random) -> Turn:
    """A story of about 50 tokens; with sampling, every seed tells another."""
    hero = rng.choice(ANIMALS)
    forms = [f"Tell me a story about a {hero}.", f"Tell a story about a {hero}."]
    heroes = hero
    if rng.random() < 0.4:
        forms = ["Tell me a story.", "Tell me a short story.", "Can you tell me a story?"]
        heroes = _HEROES
    story = "".join(rng.choice(parts) for parts in _STORY).replace("{hero}", hero)
    # The same hero all the way: the first mention is captured, the second refers to it.
    first, second = f"({heroes})", r"\1"
    accepted = _STORY_PATTERN.replace("{hero}", first, 1).replace("{hero}", second)
    return Turn(rng.choice(forms), story, accepted=accepted)


def compare(rng: random.Random) -> Turn:
    """Comparing two shapes that are named, in the words in which two images are compared."""
    first, second = ((rng.choice(list(COLOURS)), rng.choice(list(SHAPES))) for _ in range(2))
    if rng.random() < 0.3:
        second = rng.choice([(first[0], second[1]), (second[0], first[1])])
    named = f"First a {' '.join(first)}, then a {' '.join(second)}."
    if rng.random() < 0.5:
        verdict = "the same colour" if first[0] == second[0] else "different colours"
        answer = f"The first is {first[0]}, the second is {second[0]}: {verdict}."
        return Turn(f"{named} Are the colours the same?", answer)
    verdict = "the same shape" if first[1] == second[1] else "different shapes"
    answer = f"The first is a {first[1]}, the second is a {second[1]}: {verdict}."
    return Turn(f"{named} Are the shapes the same?", answer)


def miss_image(rng: random.Random) -> Turn:
    """A question about an image that was not sent."""
    forms = [
        "What is in this image?",
        "What is in this picture?",
        "Describe this image.",
        "What colour is it?",
        "Which shape is it?",
        "What do you see?",
        "What is this?",
    ]
    return Turn(rng.choice(forms), "I see no picture. Please send me one.")


TEXT_SKILLS: dict[str, Callable[[random.Random], Turn]] = {
    "count": count,
    "count a few": count_a_few,
    "repeat": repeat,
    "spell": spell,
    "add": add,
    "greet": greet,
    "introduce": introduce,
    "recall name": recall_name,
    "pick": pick,
    "story": tell_story,
    "compare": compare,
    "no picture": miss_image,
}
