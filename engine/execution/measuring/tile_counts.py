"""Which numbers of tiles of images the vision tower encodes together.

As the check of batch sizes does for the language model: the same tiles run through the real tower
in forwards of each number, at other places and beside other tiles, and the bits of their features
are compared. Only numbers at which they agree are used, and only where a forward of them is clearly
faster than smaller ones: a tower whose products keep the device busy with one tile gains nothing,
and all answers would wait for more tiles.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping, Sequence

import torch

from engine.execution.batch_sizes import BatchInvarianceError
from engine.execution.kv_cache import bits_of
from engine.execution.measuring.rounded import GrowingSizes, Rounded
from engine.loading.families.processors import PIXELS
from engine.platform.platforms import platform_of
from engine.vision.features import Vision
from engine.vision.tiles import TileCounts

logger = logging.getLogger(__name__)

_COUNTS = (1, 2, 3, 4, 6, 8)
"""Candidates. The largest bounds the memory of a forward, and how long others wait for it."""
_PROBED = 4  # different tiles whose features are compared
_CLEARLY = 0.9  # of the time that a tile takes in the smallest forward
_SLOW_S = 0.1
"""A tower that takes as long for one tile is not checked: the device is busy with it, and loading
would wait for dozens of such forwards."""


def find_tile_counts(
    vision: Vision, shape: tuple[int, ...], device: torch.device
) -> TileCounts | None:
    """The numbers of tiles that are encoded together; None where images are encoded one by one.

    Args:
        vision: of the model.
        shape: [colours, height, width] of its tiles.
        device: where the tower is.
    """
    check = _TileCheck(vision, shape)
    try:
        if check.seconds_of_one() > _SLOW_S:
            return None
        sizes = GrowingSizes((1, 2), check.rounded_sizes(1), check.rounded_sizes(2))
        alike = platform_of(device).rounds_alike
        candidates = [count for count in _COUNTS if all(map(alike, sizes.at(count)))]
        groups: dict[bytes, list[int]] = {}
        for count in candidates:
            groups.setdefault(check.bits(count, seed=count), []).append(count)
    except torch.AcceleratorError:
        raise
    except Exception as error:  # noqa: BLE001 - of any tower; images that come are encoded alone
        logger.warning("images are encoded one by one: %s", error)
        return None
    agreeing = max(groups.values(), key=len, default=[])
    counts = _worth_it(agreeing, check.seconds)
    if len(counts) < 2:
        return None
    logger.info("tiles of images that are encoded together, bit for bit as alone: %s", counts)
    return TileCounts(shape, counts)


def tiles_digest(vision: Vision, tiles: TileCounts) -> str | None:
    """A digest of the bits at these counts, the same for all that agree; None if they do not.

    It shows, in few forwards, whether counts that were measured before still hold.
    """
    check = _TileCheck(vision, tiles.shape)
    found = {check.bits(count, seed=count) for count in {tiles.counts[0], tiles.counts[-1]}}
    return hashlib.sha256(found.pop()).hexdigest() if len(found) == 1 else None


def _worth_it(counts: Sequence[int], seconds: Mapping[int, float]) -> tuple[int, ...]:
    """The smallest count, and those at which a tile takes clearly less time than there."""
    return tuple(
        count
        for count in counts
        if count == counts[0] or seconds[count] / count < _CLEARLY * seconds[counts[0]] / counts[0]
    )


class _TileCheck:
    """Encodes `_PROBED` fixed tiles, at any place among others.

    Attributes:
        seconds: the least time of a forward, by its number of tiles.
    """

    def __init__(self, vision: Vision, shape: tuple[int, ...]) -> None:
        self._vision = vision
        self._tiles = torch.randn(_PROBED, *shape, generator=torch.Generator().manual_seed(0))
        self.seconds: dict[int, float] = {}

    def seconds_of_one(self) -> float:
        """How long a tile takes; the second time, because the first one takes longer."""
        for _ in range(2):
            self._encode([0])
        return self.seconds[1]

    def rounded_sizes(self, num_tiles: int) -> list[int]:
        """The sizes of all results of the functions of `Rounded` in a forward."""
        seen = Rounded()
        with seen:
            self._vision.features_of({PIXELS: self._tiles[:num_tiles].numpy()})
        return seen.sizes

    def bits(self, num_tiles: int, *, seed: int) -> bytes:
        """All bits of the features of all tiles, in forwards of ``num_tiles``.

        ``seed`` decides their places and the other tiles, which must not matter.
        """
        shuffle = torch.Generator().manual_seed(seed)
        seen: list[bytes] = []
        for members in torch.arange(_PROBED).split(num_tiles):
            chosen = torch.randint(_PROBED, (num_tiles,), generator=shuffle)
            places = torch.randperm(num_tiles, generator=shuffle)[: len(members)]
            chosen[places] = members
            parts = self._encode(chosen.tolist())
            seen += [part for place in places.tolist() for part in parts[place]]
        return b"".join(seen)

    def _encode(self, chosen: Sequence[int]) -> list[list[bytes]]:
        """The bits of the features of each tile in a forward of these."""
        pixels = self._tiles[list(chosen)].numpy()
        start = time.perf_counter()
        features = self._vision.features_of({PIXELS: pixels})
        layers = [layer.cpu() for layer in (features.tokens, *features.deepstack)]
        seconds = time.perf_counter() - start
        self.seconds[len(chosen)] = min(seconds, self.seconds.get(len(chosen), seconds))
        if any(len(layer) % len(chosen) for layer in layers):
            raise BatchInvarianceError("the features of an image depend on those beside it")
        tiles = zip(*(layer.chunk(len(chosen)) for layer in layers), strict=True)
        return [[bits_of(part) for part in tile] for tile in tiles]
