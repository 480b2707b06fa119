"""Images of one coloured shape, drawn from an integer seed.

The same seed always gives the same image, on any machine: `random.Random` and
`numpy.random.default_rng` promise stable streams, and are the only sources of randomness.

Training uses the seeds below `HELD_OUT_SEED` only; measurements use the seeds from `HELD_OUT_SEED`
on, so no measured image was ever trained on.
"""

import math
import random
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

HELD_OUT_SEED = 1_000_000_000

RGB = tuple[int, int, int]
Point = tuple[float, float]

COLOURS: dict[str, RGB] = {
    "red": (215, 40, 40),
    "green": (40, 155, 60),
    "blue": (45, 75, 220),
    "yellow": (240, 215, 50),
    "orange": (245, 135, 30),
    "purple": (150, 40, 200),
    "black": (20, 20, 20),
    "white": (240, 240, 240),
}

SUPERSAMPLING = 2  # shapes are drawn at twice the size and reduced, for smooth edges
SHORTEST_SIDE, LONGEST_SIDE = 96, 168  # pixels
LARGEST_RADIUS = 0.46  # of the shorter side; below one half, so that the shape stays inside
BACKGROUND_DISTANCE = 110.0  # between background and shape, euclidean in RGB


@dataclass(frozen=True)
class Drawing:
    """One shape on a plain background, with what the model is to say about it."""

    image: Image.Image
    colour: str
    shape: str

    @property
    def phrase(self) -> str:
        """Noun phrase with its article, e.g. "a red circle"."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape}"

    @property
    def description(self) -> str:
        """The expected answer to "What is in this image?", e.g. "A red circle."."""
        return f"{self.phrase[0].upper()}{self.phrase[1:]}."


def _regular(corners: int, start: float) -> list[Point]:
    """Corners of a regular polygon in the unit circle; `start` is the first angle, in radians."""
    angles = [start + 2 * math.pi * i / corners for i in range(corners)]
    return [(math.cos(a), math.sin(a)) for a in angles]


def _star() -> list[Point]:
    outer = _regular(5, -math.pi / 2)
    inner = _regular(5, -math.pi / 2 + math.pi / 5)
    return [p for o, i in zip(outer, inner, strict=True) for p in (o, (0.42 * i[0], 0.42 * i[1]))]


def _heart() -> list[Point]:
    points = []
    for i in range(60):
        t = 2 * math.pi * i / 60
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((x / 18.2, -(y + 2.5) / 18.2))  # 18.2: scales the curve into the unit circle
    return points


# Every shape is a polygon inside the unit circle, y pointing down.
SHAPES: dict[str, list[Point]] = {
    "circle": _regular(60, 0.0),
    "square": _regular(4, math.pi / 4),
    "triangle": _regular(3, -math.pi / 2),
    "star": _star(),
    "heart": _heart(),
}


def _background(rng: random.Random, colour: RGB, difficulty: float) -> RGB:
    """A random colour, drawn towards mid-grey at low difficulty, far enough from `colour`."""
    while True:
        r, g, b = (round(128 + difficulty * (rng.randrange(256) - 128)) for _ in range(3))
        # Mid-grey itself is nearer than the limit to no colour of the table.
        if math.dist((r, g, b), colour) > BACKGROUND_DISTANCE:
            return r, g, b


def _side(rng: random.Random, difficulty: float) -> int:
    """Length of one side of the canvas, pixels."""
    return round(128 + difficulty * (rng.randint(SHORTEST_SIDE, LONGEST_SIDE) - 128))


def _outline(
    rng: random.Random, shape: str, size: tuple[int, int], difficulty: float
) -> list[Point]:
    """Corners of the shape in pixels: random radius, turn and place, wholly inside `size`."""
    width, height = size
    smallest = 0.38 - 0.10 * difficulty
    radius = rng.uniform(smallest, LARGEST_RADIUS) * min(width, height)
    turn = difficulty * rng.uniform(-0.2, 0.2)
    x = rng.uniform(radius, width - radius)
    y = rng.uniform(radius, height - radius)
    cos, sin = radius * math.cos(turn), radius * math.sin(turn)
    return [(x + cos * u - sin * v, y + sin * u + cos * v) for u, v in SHAPES[shape]]


def _add_noise(image: Image.Image, seed: int, strength: float) -> Image.Image:
    """Adds gaussian noise; `strength` is its standard deviation in grey levels (0 to 255)."""
    pixels = np.asarray(image, dtype=np.float32)  # [height, width, 3]
    noise = np.random.default_rng(seed).standard_normal(pixels.shape, dtype=np.float32)
    return Image.fromarray(np.clip(pixels + strength * noise, 0, 255).astype(np.uint8))


def draw_image(
    seed: int, *, colour: str | None = None, shape: str | None = None, difficulty: float = 1.0
) -> Drawing:
    """Draws the image that belongs to `seed`.

    `colour` and `shape` override the drawn ones. `difficulty` exists for the first stage of
    training, which starts at 0 (large shape, grey background); the published images are those
    at 1.
    """
    rng = random.Random(seed)
    drawn_colour, drawn_shape = rng.choice(list(COLOURS)), rng.choice(list(SHAPES))
    colour, shape = colour or drawn_colour, shape or drawn_shape
    jitter = [round(difficulty * rng.uniform(-14, 14)) for _ in range(3)]
    red, green, blue = (c + j for c, j in zip(COLOURS[colour], jitter, strict=True))
    background = _background(rng, COLOURS[colour], difficulty)
    size = _side(rng, difficulty), _side(rng, difficulty)
    outline = _outline(rng, shape, size, difficulty)

    canvas = Image.new("RGB", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING), background)
    scaled = [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in outline]
    ImageDraw.Draw(canvas).polygon(scaled, fill=(red, green, blue))
    image = canvas.reduce(SUPERSAMPLING)
    if rng.random() < 0.25 * difficulty:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
    if rng.random() < 0.25 * difficulty:
        image = _add_noise(image, seed, rng.uniform(4, 12))
    return Drawing(image, colour, shape)
