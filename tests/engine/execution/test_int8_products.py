"""INT8 products of our own: the bits of bitsandbytes' layers, at every number of rows."""

from __future__ import annotations

import asyncio
from contextlib import closing
from itertools import product
from typing import Any

import pytest
import torch
from bitsandbytes import nn as bitsandbytes_nn
from torch import nn

from engine import Engine, EngineConfig
from engine.core.model_info import weight_bytes
from engine.execution.executor import Executor
from engine.execution.modules import int8_kernel, int8_product
from engine.execution.modules.int8_product import Int8Product
from engine.execution.modules.prepack import PackedLinear, prepack
from engine.loading.loader import load_model
from schema import Task
from tests.engine.conftest import TinyModel

pytestmark = pytest.mark.skipif(
    not int8_kernel.has_kernel(), reason="the CPU has no AVX-512 VNNI: INT8 is bitsandbytes' there"
)

_BNB: Any = bitsandbytes_nn  # untyped
DTYPES = (torch.bfloat16, torch.float32, torch.float16)
# Outputs and inputs: less than a panel and a step, whole ones, and more.
SHAPES = ((1, 1), (33, 70), (64, 64), (130, 897), (70, 4864))
ROWS = (1, 2, 3, 4, 5, 6, 7, 11, 48, 61)


def int8_layer(
    out_features: int, in_features: int, dtype: torch.dtype, bias: bool, seed: int = 0
) -> Any:
    """A layer of bitsandbytes with random weights, one column of which is zero."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, generator=draw)
    weight[out_features // 2] = 0
    layer = _BNB.Linear8bitLt(
        in_features, out_features, bias, has_fp16_weights=False, device="meta"
    )
    layer.weight = _BNB.Int8Params(weight.to(dtype), requires_grad=False).to("cpu")
    if bias:
        layer.bias = nn.Parameter(torch.randn(out_features, generator=draw).to(dtype))
    return layer.eval()


def random_rows(count: int, width: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Rows of very different sizes; some of zeros, of too much for float16, and of no numbers."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, width, generator=draw) * 2.0 ** torch.randint(
        -24, 12, (count, 1), generator=draw
    )
    for row, value in zip(range(1, count, 7), (0.0, 1e5, float("nan"), -0.0), strict=False):
        rows[row, torch.randint(width, (1,), generator=draw)] = value
    rows[2::9] = 0
    return rows.to(dtype)


def same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two results agree in every bit, but for which NaN it is."""
    if ours.dtype != theirs.dtype or ours.shape != theirs.shape:
        return False
    whole = {2: torch.int16, 4: torch.int32}[ours.element_size()]
    bits = (ours.view(whole) == theirs.view(whole)) | (ours.isnan() & theirs.isnan())
    return bool(bits.all())


@torch.inference_mode()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_bits_of_bitsandbytes(dtype: torch.dtype, bias: bool) -> None:
    for seed, (shape, count) in enumerate(product(SHAPES, ROWS)):
        layer = int8_layer(*shape, dtype, bias, seed)
        rows = random_rows(count, shape[1], dtype, seed)
        assert int8_product.takes(layer)
        assert same_bits(Int8Product([layer])(rows), layer(rows)), (shape, count)


@torch.inference_mode()
def test_sums_that_float32_cannot_hold() -> None:
    """The largest that there are: exact in int32, and rounded once."""
    layer = int8_layer(64, 20_000, torch.float32, bias=False)
    signs = torch.randint(2, (64, 20_000), generator=torch.Generator().manual_seed(0)) * 2 - 1
    signs[:32] = 1
    layer.weight = _BNB.Int8Params(signs.float(), requires_grad=False).to("cpu")
    rows = torch.ones(3, 20_000)
    rows[1] = -1
    rows[2, ::3] = -0.99
    assert same_bits(Int8Product([layer])(rows), layer(rows))


@torch.inference_mode()
@pytest.mark.parametrize("threads", [1, 2])
def test_a_row_does_not_depend_on_the_others(threads: int) -> None:
    kept = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        computed = Int8Product([int8_layer(200, 300, torch.bfloat16, bias=True)])
        rows = random_rows(150, 300, torch.bfloat16)
        alone = torch.cat([computed(row[None]) for row in rows])
        for count in (2, 5, 49, 97, 150):
            assert same_bits(computed(rows[:count]), alone[:count])
        assert computed(rows[:0]).shape == (0, 200)
        assert same_bits(computed(rows.view(3, 50, 300)).view(150, 200), alone)
    finally:
        torch.set_num_threads(kept)


@torch.inference_mode()
def test_layers_of_one_input() -> None:
    layers = [int8_layer(size, 100, torch.bfloat16, bias=True, seed=size) for size in (40, 64, 7)]
    computed = Int8Product(layers)
    rows = random_rows(9, 100, torch.bfloat16)
    expected = torch.cat([layer(rows) for layer in layers], dim=-1)
    assert same_bits(computed(rows), expected)


@torch.inference_mode()
def test_other_layers_stay() -> None:
    """Those with outlier columns, those that are not quantized, and where there is no kernel."""
    layer = int8_layer(8, 8, torch.float32, bias=False)
    layer.state.threshold = 6.0
    assert not int8_product.takes(layer)
    assert not int8_product.takes(nn.Linear(8, 8))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_packed_copy_replaces_the_weight(dtype: Any, tiny_model: TinyModel) -> None:
    """float16 too, whose plain layers oneDNN does not pack."""
    model = str(tiny_model("qwen2"))
    loaded = load_model(EngineConfig(model=model, dtype=dtype, quantize_bits=8, device="cpu"))
    before = {name for name, each in loaded.model.named_modules() if int8_product.is_int8(each)}
    executor = Executor(loaded)
    assert prepack(loaded.model, trial=executor.measure, plain=dtype == "bfloat16")
    assert before
    assert all(isinstance(loaded.model.get_submodule(name), PackedLinear) for name in before)
    stored = {id(t): t for name in before for t in loaded.model.get_submodule(name).stored()}
    assert all(
        tensor.dtype in (torch.int8, torch.int32, torch.float32) for tensor in stored.values()
    )
    assert weight_bytes(loaded.model) >= sum(each.nbytes for each in stored.values())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
async def test_answers_with_and_without_the_kernel(
    dtype: Any, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, log probabilities included; the card and the fingerprint say which it is."""
    config = EngineConfig(
        model=str(tiny_model("qwen2")),
        dtype=dtype,
        quantize_bits=8,
        device="cpu",
        threads=1,
        max_sequences=4,
        prefill_chunk=16,
        kv_cache_tokens=1024,
    )
    tasks = [
        Task.from_fields(
            model="m",
            messages=[{"role": "user", "content": "What is this? " * (1 + seed)}],
            seed=seed,
            dtype=dtype,
            quantize_bits=8,
            generation_config={"max_new_tokens": 9, "do_sample": seed > 1, "logprobs": 2},
        )
        for seed in range(4)
    ]
    cards, answers = [], []
    for has_kernel in (True, False):
        monkeypatch.setattr(int8_kernel, "has_kernel", lambda has=has_kernel: has)
        with closing(Engine(config)) as engine:
            cards.append(engine.card())
            responses = await asyncio.gather(*map(engine.run, tasks))
            answers.append([response["choices"] for response in responses])
    assert answers[0] == answers[1]
    assert [card["int8_products"] for card in cards] == [["vnni"], ["bitsandbytes"]]
    assert cards[0]["system_fingerprint"] != cards[1]["system_fingerprint"]
    assert all(card["continuous_batching"] for card in cards)
