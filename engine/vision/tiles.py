"""Which images share a forward of the vision tower: tiles of one shape, at verified counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.loading.families.processors import PIXELS
from engine.vision.preprocessor import PreparedImage


@dataclass(frozen=True)
class TileCounts:
    """How many tiles a forward of one model's vision tower may have.

    `engine.execution.measuring.tile_counts` finds them.

    Attributes:
        shape: [colours, height, width] of a tile.
        counts: tiles of a forward, ascending; at all of them a tile has the same features, bit for
            bit. An image with another number of tiles, or tiles of another shape, has a forward of
            its own.
    """

    shape: tuple[int, ...]
    counts: tuple[int, ...]

    def fit(self, images: Sequence[PreparedImage]) -> bool:
        """Whether these images could share a forward, at the next larger count if not at theirs."""
        tiles = [self._tiles(image) for image in images]
        return all(tiles) and sum(tiles) <= self.counts[-1]

    def forwards(self, images: Sequence[PreparedImage]) -> list[list[PreparedImage]]:
        """The images, in order, that share forwards: as many in each as may be.

        Those that share none with another one are left out.
        """
        left = [image for image in images if self._tiles(image)]
        found: list[list[PreparedImage]] = []
        while left:
            together, tiles = 1, 0
            for number, image in enumerate(left, 1):
                tiles += self._tiles(image)
                if tiles in self.counts:
                    together = number
            if together > 1:
                found.append(left[:together])
            left = left[together:]
        return found

    def _tiles(self, image: PreparedImage) -> int:
        """Tiles of an image that may share a forward; 0 if it may not."""
        pixels = image.arrays.get(PIXELS)
        if pixels is None or len(image.arrays) > 1 or pixels.shape[1:] != self.shape:
            return 0
        return len(pixels) if len(pixels) in self.counts else 0
