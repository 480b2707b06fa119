"""The code that runs on the GPU: attention over the paged KV cache, in Triton.

Softmax is computed as the keys come, block by block, in the order of the sequence (Milakov and
Gimelshein, https://arxiv.org/abs/1805.02867; Dao et al., https://arxiv.org/abs/2205.14135), with
scores as logarithms to base 2, sums in float32, and weights rounded to the dtype of the values.

* `attend_prompts`: chunks of prompts. A program has a tile of a sequence's rows and goes through
  all keys that these see.
* `attend_tokens`: one token for each row. The context is cut into splits, which programs share;
  `combine_splits` adds them up, in the order of the sequence.

**A row's bits are a function of its sequence.** Blocks and splits begin at places that the row's
own position, window and chunk decide. A block of which a row sees nothing leaves its sums as they
are, to the bit, so the other rows of a tile do not matter. How many sequences there are, and how
long the longest one is, decide only which program computes what.

Rows of a tile are pairs of a token and a head: those of all heads that share a key/value head, so
that keys are read once for these, and however many there are. Sizes of heads are filled up to a
power of two by masks. Offsets in the cache are 64 bits wide.

Shapes: T rows of the batch, N sequences, H query heads, K key/value heads, D and E sizes of a key
and of a value. Constants in capitals are compiled in; `engine.execution.kernels.launch` sets them.
"""

from __future__ import annotations

import triton
import triton.language as tl

SPLIT = tl.constexpr(256)
"""Tokens of a split, as long as `MAX_SPLITS` of them hold what a token sees; else a multiple."""
MAX_SPLITS = tl.constexpr(64)
_TOGETHER = tl.constexpr(8)  # splits that are added up at once
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _first_seen(position, window, chunk):
    """The first token that is seen from a position, or from each of several."""
    return tl.maximum(tl.maximum(position - window + 1, position - position % chunk), 0)


@triton.jit
def _splits(context, window, chunk, BLOCK: tl.constexpr):
    """What the last token of a context sees: its first block, tokens of a split, and their number.

    Growing splits bound the number of partial results. Where they are cut depends on the token's
    own position only.
    """
    start = _first_seen(context - 1, window, chunk) // BLOCK * BLOCK
    split = tl.cdiv(context - start, MAX_SPLITS * SPLIT) * SPLIT
    return start, split, tl.cdiv(context - start, split)


@triton.jit
def _scores(
    query, key, scale, softcap, CAPPED: tl.constexpr, WIDEN: tl.constexpr
):  # [ROWS, D], [D, BLOCK] -> float32 [ROWS, BLOCK]
    """Scores as logarithms to base 2: ``scale`` has that factor in it, or else ``softcap``."""
    if WIDEN:
        key = key.to(tl.float32)
    scores = tl.dot(query, key, input_precision="ieee") * scale
    if CAPPED:
        power = tl.exp2(tl.abs(scores) * (-2.0 * _LOG2_E))
        size = (1.0 - power) / (1.0 + power)  # the hyperbolic tangent
        scores = softcap * tl.where(scores < 0, -size, size)
    return scores


@triton.jit
def _attended(
    query,  # [ROWS, D]
    keys,  # of one key/value head
    values,
    pages,  # of the sequence
    start,  # tokens of the sequence that are gone through
    end,
    sees_from,  # [ROWS]: the first token that each row sees, and the first one that it does not
    sees_until,
    key_stride,  # from one token to the next
    value_stride,
    scale,
    softcap,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEY_COLUMNS: tl.constexpr,
    VALUE_COLUMNS: tl.constexpr,
):
    """Each row's largest score [ROWS], sum of weights, and weighted sum of values [ROWS, E]."""
    key_dims = tl.arange(0, KEY_COLUMNS)
    value_dims = tl.arange(0, VALUE_COLUMNS)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, VALUE_COLUMNS], tl.float32)
    for first in range(start, end, BLOCK):
        tokens = first + tl.arange(0, BLOCK)
        # What lies behind the context belongs to nobody: not even zero times it may be added.
        known = tokens < end
        page = tl.load(pages + tokens // PAGE_SIZE, mask=known, other=0).to(tl.int64)
        slots = page * PAGE_SIZE + tokens % PAGE_SIZE
        key = tl.load(
            keys + slots[None, :] * key_stride + key_dims[:, None],
            mask=known[None, :] & (key_dims[:, None] < KEY_DIM),
            other=0.0,
        )
        scores = _scores(query, key, scale, softcap, CAPPED, WIDEN)
        seen = (tokens[None, :] >= sees_from[:, None]) & (tokens[None, :] < sees_until[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        before, largest = largest, tl.maximum(largest, tl.max(scores, 1))
        offset = tl.where(largest == float("-inf"), 0.0, largest)  # of rows that saw nothing yet
        weights = tl.exp2(scores - offset[:, None])
        fading = tl.exp2(before - offset)
        total = total * fading + tl.sum(weights, 1)
        value = tl.load(
            values + slots[:, None] * value_stride + value_dims[None, :],
            mask=known[:, None] & (value_dims[None, :] < VALUE_DIM),
            other=0.0,
        )
        weights = weights.to(value.dtype)
        if WIDEN:
            weights = weights.to(tl.float32)
            value = value.to(tl.float32)
        sums = tl.dot(weights, value, sums * fading[:, None], input_precision="ieee")
    return largest, total, sums


@triton.jit(do_not_specialize=["num_sequences", "window", "chunk"])
def attend_prompts(
    output,  # [T, H, E], contiguous
    query,  # [H, T, D]
    keys,  # [slots, K, D]
    values,  # [slots, K, E]
    row_starts,  # int32 [N + 1]
    contexts,  # int32 [N]
    block_table,  # int32 [N, P]
    seen_until,  # int32 [T], or None: rows see no later ones
    sinks,  # [H], or None
    query_head_stride,
    query_row_stride,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    table_stride,
    num_sequences,
    window,
    chunk,
    scale,
    softcap,
    GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEY_COLUMNS: tl.constexpr,
    VALUE_COLUMNS: tl.constexpr,
):
    """Write the attention output of all rows. Grid: (T * GROUP // ROWS + N, K).

    A sequence has the tiles from ``row_starts[n] * GROUP // ROWS + n`` on: enough for its rows,
    whatever those before it have. The programs of the tiles that it does not need return at once.
    """
    tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    low, high = 0, num_sequences  # the sequence whose tile it is lies between
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(row_starts + middle) * GROUP // ROWS + middle <= tile:
            low = middle
        else:
            high = middle
    first_row = tl.load(row_starts + low)
    num_rows = tl.load(row_starts + low + 1) - first_row
    place = (tile - first_row * GROUP // ROWS - low) * ROWS
    if place >= num_rows * GROUP:
        return
    pairs = place + tl.arange(0, ROWS)
    real = pairs < num_rows * GROUP
    rows = first_row + pairs // GROUP
    heads = kv_head * GROUP + pairs % GROUP
    position = tl.load(contexts + low) - num_rows + pairs // GROUP
    sees_from = _first_seen(position, window, chunk)
    sees_until = position + 1
    if seen_until is not None:
        sees_until = tl.load(seen_until + rows, mask=real, other=0)
    sees_until = tl.where(real, sees_until, 0)
    # The first pair has the earliest position, and there is one always.
    first = _first_seen(tl.load(contexts + low) - num_rows + place // GROUP, window, chunk)
    key_dims = tl.arange(0, KEY_COLUMNS)
    own = tl.load(
        query
        + heads[:, None].to(tl.int64) * query_head_stride
        + rows[:, None].to(tl.int64) * query_row_stride
        + key_dims[None, :],
        mask=real[:, None] & (key_dims[None, :] < KEY_DIM),
        other=0.0,
    )
    if WIDEN:
        own = own.to(tl.float32)
    largest, total, sums = _attended(
        own,
        keys + kv_head.to(tl.int64) * key_head_stride,
        values + kv_head.to(tl.int64) * value_head_stride,
        block_table + low * table_stride,
        first // BLOCK * BLOCK,
        tl.max(sees_until, 0),
        sees_from,
        sees_until,
        key_stride,
        value_stride,
        scale,
        softcap,
        KEY_DIM,
        VALUE_DIM,
        PAGE_SIZE,
        CAPPED,
        WIDEN,
        ROWS,
        BLOCK,
        KEY_COLUMNS,
        VALUE_COLUMNS,
    )
    if sinks is not None:
        sink = tl.load(sinks + heads, mask=real, other=0.0).to(tl.float32) * _LOG2_E
        before, largest = largest, tl.maximum(largest, sink)
        fading = tl.exp2(before - largest)
        total = total * fading + tl.exp2(sink - largest)
        sums = sums * fading[:, None]
    total = tl.where(real, total, 1.0)
    value_dims = tl.arange(0, VALUE_COLUMNS)
    tl.store(
        output
        + (rows[:, None].to(tl.int64) * tl.num_programs(1) * GROUP + heads[:, None]) * VALUE_DIM
        + value_dims[None, :],
        (sums / total[:, None]).to(output.dtype.element_ty),
        mask=real[:, None] & (value_dims[None, :] < VALUE_DIM),
    )


@triton.jit(do_not_specialize=["num_slots", "window", "chunk"])
def attend_tokens(
    partial_sums,  # float32 [T, H, num_slots, E]: for each split
    partial_totals,  # float32 [T, H, num_slots, 2]: the largest score, the sum of weights
    query,  # [H, T, D]
    keys,  # [slots, K, D]
    values,  # [slots, K, E]
    contexts,  # int32 [T]
    block_table,  # int32 [T, P]
    query_head_stride,
    query_row_stride,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    table_stride,
    num_slots,
    window,
    chunk,
    scale,
    softcap,
    GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    CAPPED: tl.constexpr,
    WIDEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    KEY_COLUMNS: tl.constexpr,
    VALUE_COLUMNS: tl.constexpr,
):
    """Write the splits of rows that are the last tokens of their contexts.

    Grid: (T * tiles, K, any number), with as many tiles of ``ROWS`` heads as ``GROUP`` needs.
    Programs along the last axis share a row's splits; what a split gives is the same whichever
    program computes it. Those for which there is none return at once.
    """
    tiles = tl.cdiv(GROUP, ROWS)
    row = tl.program_id(0) // tiles
    kv_head = tl.program_id(1)
    context = tl.load(contexts + row)
    start, split, num_splits = _splits(context, window, chunk, BLOCK)
    if tl.program_id(2) >= num_splits:
        return
    members = tl.program_id(0) % tiles * ROWS + tl.arange(0, ROWS)
    real = members < GROUP
    heads = kv_head * GROUP + members
    key_dims = tl.arange(0, KEY_COLUMNS)
    value_dims = tl.arange(0, VALUE_COLUMNS)
    own = tl.load(
        query
        + heads[:, None].to(tl.int64) * query_head_stride
        + row.to(tl.int64) * query_row_stride
        + key_dims[None, :],
        mask=real[:, None] & (key_dims[None, :] < KEY_DIM),
        other=0.0,
    )
    if WIDEN:
        own = own.to(tl.float32)
    sees_from = tl.zeros([ROWS], tl.int32) + _first_seen(context - 1, window, chunk)
    sees_until = tl.zeros([ROWS], tl.int32) + context
    for number in range(tl.program_id(2), num_splits, tl.num_programs(2)):
        first = start + number * split
        largest, total, sums = _attended(
            own,
            keys + kv_head.to(tl.int64) * key_head_stride,
            values + kv_head.to(tl.int64) * value_head_stride,
            block_table + row * table_stride,
            first,
            tl.minimum(first + split, context),
            sees_from,
            sees_until,
            key_stride,
            value_stride,
            scale,
            softcap,
            KEY_DIM,
            VALUE_DIM,
            PAGE_SIZE,
            CAPPED,
            WIDEN,
            ROWS,
            BLOCK,
            KEY_COLUMNS,
            VALUE_COLUMNS,
        )
        places = (row.to(tl.int64) * tl.num_programs(1) * GROUP + heads) * num_slots + number
        tl.store(partial_totals + places * 2, largest, mask=real)
        tl.store(partial_totals + places * 2 + 1, total, mask=real)
        tl.store(
            partial_sums + places[:, None] * VALUE_DIM + value_dims[None, :],
            sums,
            mask=real[:, None] & (value_dims[None, :] < VALUE_DIM),
        )


@triton.jit(do_not_specialize=["num_slots", "window", "chunk"])
def combine_splits(
    output,  # [T, H, E], contiguous
    partial_sums,  # of `attend_tokens`
    partial_totals,
    contexts,  # int32 [T]
    sinks,  # [H], or None
    num_slots,
    window,
    chunk,
    VALUE_DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    VALUE_COLUMNS: tl.constexpr,
):
    """Write the attention output of rows from that of their splits. Grid: (T, H)."""
    row = tl.program_id(0)
    head = tl.program_id(1)
    place = row.to(tl.int64) * tl.num_programs(1) + head
    _, _, num_splits = _splits(tl.load(contexts + row), window, chunk, BLOCK)
    all_splits = tl.arange(0, MAX_SPLITS)
    totals = partial_totals + place * num_slots * 2
    largest = tl.max(
        tl.load(totals + all_splits * 2, mask=all_splits < num_splits, other=float("-inf")), 0
    )
    total = 0.0
    if sinks is not None:
        sink = tl.load(sinks + head).to(tl.float32) * _LOG2_E
        largest = tl.maximum(largest, sink)
        total = tl.exp2(sink - largest)
    value_dims = tl.arange(0, VALUE_COLUMNS)
    sums = tl.zeros([VALUE_COLUMNS], tl.float32)
    for first in range(0, num_splits, _TOGETHER):
        splits = first + tl.arange(0, _TOGETHER)
        there = splits < num_splits
        share = tl.exp2(tl.load(totals + splits * 2, mask=there, other=float("-inf")) - largest)
        total += tl.sum(share * tl.load(totals + splits * 2 + 1, mask=there, other=0.0), 0)
        parts = tl.load(
            partial_sums + (place * num_slots + splits[:, None]) * VALUE_DIM + value_dims[None, :],
            mask=there[:, None] & (value_dims[None, :] < VALUE_DIM),
            other=0.0,
        )
        sums += tl.sum(share[:, None] * parts, 0)
    tl.store(
        output + place * VALUE_DIM + value_dims,
        (sums / total).to(output.dtype.element_ty),
        mask=value_dims < VALUE_DIM,
    )
