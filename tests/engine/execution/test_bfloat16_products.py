"""Products of bfloat16 by our kernel: close to exact ones, and of the same bits among any rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import Engine, EngineConfig
from engine.execution.modules import bfloat16_kernel
from engine.execution.modules.products import BFloat16Product, OneDNNProduct, packed_product
from tests.engine.core.test_generate_fallback import TEXT, answers, save_architecture
from tests.engine.execution.test_experts import check_under_load, tasks

pytestmark = pytest.mark.skipif(
    not bfloat16_kernel.has_kernel(),
    reason="the CPU has no AVX512-BF16, or AMX: bfloat16 is oneDNN's there",
)

# Outputs and inputs: less than a panel and a step, whole ones, and more.
SHAPES = ((1, 1), (33, 70), (64, 64), (130, 897), (200, 4864))
ROWS = (*range(1, 71), 96, 97, 128, 257)


def random_numbers(*shape: int, seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=draw).bfloat16()


def bits(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.view(torch.int16)


@contextmanager
def threads(count: int) -> Iterator[None]:
    kept = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(kept)


@torch.inference_mode()
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_near_exact_products(shape: tuple[int, int], bias: bool) -> None:
    """As near as a sum in float32, in any order, and one rounding can be."""
    weight = random_numbers(*shape, seed=0)
    added = random_numbers(shape[0], seed=1) if bias else None
    computed = BFloat16Product(weight, added)
    for count in (1, 2, 5, 6, 7, 12, 13, 97):
        rows = random_numbers(count, shape[1], seed=count)
        factors = (rows.double(), weight.double().t())
        offset = added.double() if added is not None else torch.zeros(shape[0]).double()
        exact = factors[0] @ factors[1] + offset
        # Each of the sums may be off by a half unit in the last of 24 places, the result of 8.
        sizes = factors[0].abs() @ factors[1].abs() + offset.abs()
        most = sizes * (shape[1] + 1) * 2.0**-24 + exact.abs() * 2.0**-8
        assert ((computed(rows).double() - exact).abs() <= most).all(), count


@torch.inference_mode()
@pytest.mark.parametrize("shape", SHAPES)
def test_whole_numbers_are_exact(shape: tuple[int, int]) -> None:
    """A row with a few ones picks weights: sums without any rounding but the last."""
    weight = random_numbers(*shape, seed=0).mul(4).round()
    rows = (random_numbers(50, shape[1], seed=1) > 2).bfloat16()
    exact = rows.double() @ weight.double().t()
    assert torch.equal(BFloat16Product(weight, None)(rows).double(), exact.bfloat16().double())


@torch.inference_mode()
@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_row_does_not_depend_on_the_others(shape: tuple[int, int], num_threads: int) -> None:
    """At any number of rows and at any place."""
    computed = BFloat16Product(random_numbers(*shape, seed=0), random_numbers(shape[0], seed=1))
    rows = random_numbers(max(ROWS), shape[1], seed=2)
    with threads(1):
        alone = bits(torch.cat([computed(row[None]) for row in rows]))
    with threads(num_threads):
        for count in ROWS:
            places = torch.randperm(len(rows), generator=torch.Generator().manual_seed(count))
            places = places[:count]
            assert torch.equal(bits(computed(rows[places])), alone[places]), count


@torch.inference_mode()
def test_what_is_no_number_stays_in_its_row_and_column() -> None:
    weight, rows = random_numbers(130, 97, seed=0), random_numbers(20, 97, seed=1)
    expected = BFloat16Product(weight, None)(rows)
    weight[70, 96], rows[3, 0], rows[8, 96] = torch.nan, torch.inf, torch.nan
    found = BFloat16Product(weight, None)(rows)
    assert found[:, 70].isnan().all()
    assert found[8].isnan().all()
    rest = [column for column in range(130) if column != 70]
    assert torch.equal(found[3, rest].float(), weight[rest, 0].float().sign() * torch.inf)
    others = [row for row in range(20) if row not in (3, 8)]
    kept = torch.tensor([[row, column] for row, column in product(others, rest)]).unbind(1)
    assert torch.equal(bits(found[kept]), bits(expected[kept]))


@torch.inference_mode()
def test_forms_of_input() -> None:
    """Nothing, several dimensions, and rows that do not lie together."""
    computed = BFloat16Product(random_numbers(70, 40, seed=0), None)
    rows = random_numbers(12, 40, seed=1)
    expected = bits(computed(rows))
    assert computed(rows[:0]).shape == (0, 70)
    assert torch.equal(bits(computed(rows.view(3, 4, 40)).view(12, 70)), expected)
    assert torch.equal(bits(computed(rows.t().contiguous().t())), expected)
    assert torch.equal(bits(computed(rows[::2])), expected[::2])


@torch.inference_mode()
def test_nothing_is_written_beside_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last panel has fewer columns, and the last tile ends with the output."""
    computed = BFloat16Product(random_numbers(70, 40, seed=0), None)
    rows = random_numbers(9, 40, seed=1)
    expected = computed(rows)
    around = torch.full((128 + expected.numel(),), 7.0).bfloat16()
    inside = around[64:-64].view(9, 70)
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *_: inside)
    assert torch.equal(bits(computed(rows)), bits(expected))
    assert torch.equal(bits(inside), bits(expected))
    assert (around[:64] == 7).all()
    assert (around[-64:] == 7).all()


def test_zeros_keep_their_signs() -> None:
    """A product without a bias adds none: -0.0 stays what it is."""
    weight = torch.tensor([[-0.0], [1.0]]).bfloat16()
    rows = torch.tensor([[1.0], [-0.0]]).bfloat16()
    signs = OneDNNProduct(weight, None)(rows).signbit()
    assert torch.equal(BFloat16Product(weight, None)(rows).signbit(), signs)


def test_which_product_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = random_numbers(8, 8, seed=0)
    assert type(packed_product(weight, None)) is BFloat16Product
    assert type(packed_product(weight.float(), None)) is OneDNNProduct
    monkeypatch.setattr(bfloat16_kernel, "has_kernel", lambda: False)
    assert type(packed_product(weight, None)) is OneDNNProduct


def config_of(directory: Path, compile_layers: Any) -> EngineConfig:
    return EngineConfig(
        model=str(directory),
        dtype="bfloat16",
        threads=2,
        prefill_chunk=16,
        compile=compile_layers,
    )


def test_it_writes_what_generate_writes(tmp_path: Path) -> None:
    """In bfloat16; compiled layers round less often than transformers does."""
    save_architecture("llama", {}, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with closing(Engine(config_of(tmp_path, "off"))) as engine:
        for text in ("Hi", TEXT):
            inputs = tokenizer(text, return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
            ids = ids[0, inputs["input_ids"].shape[1] :]
            expected = [tokenizer.decode(ids, skip_special_tokens=True)]
            assert answers(engine, text, {"max_new_tokens": 12, "do_sample": False}) == expected


@pytest.mark.parametrize("compile_layers", ["on", "off"])
async def test_a_model_under_load(
    compile_layers: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each task has the answer that it has alone; the card says what computes."""
    monkeypatch.setenv("GPT_TASK_SERVE_CACHE", str(tmp_path / "cache"))
    save_architecture("llama", {}, tmp_path)
    config = config_of(tmp_path, compile_layers)
    with closing(Engine(config)) as engine:
        card = engine.card()
        assert card["bfloat16_products"] == ["avx512_bf16"]
        assert bool(card["compiled"]) == (compile_layers == "on")
        await check_under_load(engine, tasks(12, None))
    monkeypatch.setattr(bfloat16_kernel, "has_kernel", lambda: False)
    with closing(Engine(config)) as engine:
        assert engine.card()["bfloat16_products"] == ["onednn"]
        assert engine.card()["system_fingerprint"] != card["system_fingerprint"]
