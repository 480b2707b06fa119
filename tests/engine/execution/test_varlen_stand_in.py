"""The stand-in refuses what torch's kernel refuses, so that no test passes what a GPU would not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.engine.execution.varlen_stand_in import varlen_attn

PAGE = 256
ROWS, CONTEXTS = (3, 1), (300, 7)


def arguments(**changed: Any) -> dict[str, Any]:
    """A call that torch takes: three rows after 297 tokens, and one after six."""
    random = torch.Generator().manual_seed(0)
    starts = torch.tensor([0, 3, 4], dtype=torch.int32)
    pool = torch.randn(4, PAGE, 2, 16, generator=random).bfloat16()
    usual: dict[str, Any] = {
        "query": torch.randn(4, 4, 16, generator=random).bfloat16(),
        "key": pool,
        "value": pool.flip(1),
        "cu_seq_q": starts,
        "cu_seq_k": starts,
        "max_q": 3,
        "max_k": 512,
        "window_size": (-1, 0),
        "enable_gqa": True,
        "seqused_k": torch.tensor(CONTEXTS, dtype=torch.int32),
        "block_table": torch.tensor([[2, 0], [3, 1]], dtype=torch.int32),
        "num_splits": 1,
    }
    return usual | changed


@pytest.mark.parametrize("window", [-1, 9])
def test_it_is_attention(window: int) -> None:
    call = arguments(window_size=(window, 0))
    output = varlen_attn(**call)
    for n, first in enumerate((0, 3)):
        context, rows = CONTEXTS[n], ROWS[n]
        key, value = (
            call[name][call["block_table"][n].long()].flatten(0, 1)[:context].transpose(0, 1)
            for name in ("key", "value")
        )
        distance = torch.arange(context)[None] - torch.arange(context - rows, context)[:, None]
        seen = (distance <= 0) & (distance >= (-window if window >= 0 else -context))
        query = call["query"][first : first + rows].transpose(0, 1)
        expected = scaled_dot_product_attention(
            query.double(), key.double(), value.double(), attn_mask=seen, enable_gqa=True
        )
        found = output[first : first + rows].transpose(0, 1).double()
        assert torch.allclose(found, expected, atol=1e-2)


REFUSED: dict[str, dict[str, Any]] = {
    "both set": {"cu_seq_k": None},
    "cu_seqlens_k must have dtype int32": {"cu_seq_k": torch.tensor([0, 3, 4])},
    "cu_seqlens_k must have shape": {"cu_seq_k": torch.tensor([0, 4], dtype=torch.int32)},
    "seqused_k must have dtype": {"seqused_k": torch.tensor(CONTEXTS)},
    "block_table must have dtype": {"block_table": torch.tensor([[2, 0], [3, 1]])},
    "block_table must be contiguous": {
        "block_table": torch.tensor([[2, 3], [0, 1]], dtype=torch.int32).t()
    },
    "only support fp16 and bf16": {
        name: arguments()[name].float() for name in ("query", "key", "value")
    },
    "the same dtype": {"key": arguments()["key"].half()},
    "divisible by 256": {
        name: arguments()[name].reshape(-1, 16, 2, 16) for name in ("key", "value")
    },
    "multiple of 8": {
        name: arguments()[name][..., :12].contiguous() for name in ("query", "key", "value")
    },
    "contiguous last dimension": {
        "query": arguments()["query"].transpose(1, 2).contiguous().transpose(1, 2)
    },
    "same number of heads": {"enable_gqa": False},
}


@pytest.mark.parametrize("why", REFUSED)
def test_refused(why: str) -> None:
    with pytest.raises((RuntimeError, ValueError), match=why):
        varlen_attn(**arguments(**REFUSED[why]))
