"""The trace of an answer: a hash chain over its tokens and the bits of their logits.

Equal answers of equal engines have equal bits, so the chain needs no tolerance. Its last link
stands in the receipt of a task that asks for one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

import torch

DOMAIN = b"gpt-task-serve trace 1"
"""What the first link is a digest of, so that no other use of SHA-256 gives the same."""

_STEP = struct.Struct("<If")


def logits_of(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """The logits [rows] of tokens [rows] in float32 logits [rows, vocab]. Waits for nothing."""
    return logits.gather(1, tokens.clamp(min=0)[:, None])[:, 0]


def trace(token_ids: Sequence[int], logits: Sequence[float]) -> str:
    """The last link of the chain, in hexadecimal digits.

    The first link is SHA-256 of `DOMAIN`; each further one is SHA-256 of the link before it, the
    token's id as 4 bytes and its logit as 4 bytes (IEEE 754 single precision), little endian.

    Args:
        token_ids: of the choice, a token that ends it included.
        logits: the model's own logit of each token, before any processor: float32 numbers.
    """
    link = hashlib.sha256(DOMAIN).digest()
    for token_id, logit in zip(token_ids, logits, strict=True):
        link = hashlib.sha256(link + _STEP.pack(token_id, logit)).digest()
    return link.hex()
