"""The CUDA path on a CPU: the same loop, layouts, buffers and lookahead, with a stand-in kernel.

The kernel itself (`torch.nn.attention.varlen`) runs on CUDA only. Here its documented contract is
computed in plain tensor operations (`varlen_stand_in`), so that everything around it runs for real.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from engine import Engine, EngineConfig
from engine.core.in_flight import InFlight
from engine.core.step import Execution
from engine.requests.request import Request
from tests.engine.conftest import TinyModel
from tests.engine.execution.varlen_stand_in import PAGE, VARLEN, small_varlen_attn, use_kernel
from tests.engine.models.tiny_models import Kind
from tests.engine.models.tiny_vision_models import VisionKind
from tests.engine.sampling.test_generate_oracle import SETTINGS, TEXTS, check_crowd, task
from tests.engine.vision.vision_oracle import CONVERSATIONS, oracle, texts
from tests.engine.vision.vision_oracle import task as vision_task


@pytest.fixture
def paged(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Engine]:
    """An engine that uses the kernel, with the loop as on CUDA."""
    use_kernel(monkeypatch)
    config = EngineConfig(
        model=str(tiny_model(request.param)),
        dtype="float32",
        threads=1,
        prefill_chunk=16,
        page_size=PAGE,
        context_length=256,
        max_sequences=24,
        lookahead=True,
    )
    engine = Engine(config)
    assert engine.card()["attention"] == "paged kernel"
    yield engine
    engine.close()


KINDS: list[Kind] = ["qwen2", "llama", "gpt2", "gemma3"]


@pytest.mark.parametrize(("paged", "kind"), [(k, k) for k in KINDS], indirect=["paged"])
async def test_under_load_it_writes_what_generate_writes(
    paged: Engine, kind: Kind, tiny_model: TinyModel
) -> None:
    """All settings and texts at once, twice: the second time prompts begin in the prefix cache."""
    await check_crowd(paged, tiny_model(kind), SETTINGS.values())
    paged.close()
    paged._loop.scheduler.check_integrity()


@pytest.mark.parametrize(
    ("paged", "kind"),
    [(k, k) for k in ("qwen2_vl", "qwen3_vl", "llava")],
    indirect=["paged"],
)
async def test_images(paged: Engine, kind: VisionKind, tiny_model: TinyModel) -> None:
    """Among them those of models that have three rotary positions a token."""
    own = oracle(tiny_model(kind))
    pairs = [(m, s) for m in CONVERSATIONS.values() for s in ({}, {"do_sample": True})]
    responses = await asyncio.gather(*(paged.run(vision_task(*pair)) for pair in pairs))
    assert [texts(response) for response in responses] == [own.answers(*pair) for pair in pairs]


async def test_images_whose_tokens_attend_to_each_other(
    tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel has no mask for them: such a model runs without it, and the card says so."""
    use_kernel(monkeypatch)
    directory = tiny_model("gemma3_vision")
    config = EngineConfig(model=str(directory), dtype="float32", threads=1, page_size=PAGE)
    engine = Engine(config)
    try:
        assert engine.card()["attention"] == "per sequence"
        for messages in CONVERSATIONS.values():
            response = await engine.run(vision_task(messages))
            assert texts(response) == oracle(directory).answers(messages, {})
    finally:
        engine.close()


class NoWaiting(TorchDispatchMode):
    """Refuses operations that would make the host wait for the device on CUDA."""

    WAITING = (
        torch.ops.aten._local_scalar_dense,  # int(), bool(), item(), tolist(), `if tensor`
        torch.ops.aten.nonzero,  # boolean indices
        torch.ops.aten.equal,
        torch.ops.aten.unique_dim,
        torch.ops.aten._unique2,
        torch.ops.aten.masked_select,
    )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        assert func.overloadpacket not in self.WAITING, f"{func} waits for the device"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("paged", ["qwen2"], indirect=True)
async def test_a_launch_waits_for_nothing(paged: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every setting that samples."""
    launch = Execution.launch
    launches: list[int] = []

    def watched(execution: Execution) -> list[InFlight]:
        with NoWaiting():  # type: ignore[no-untyped-call]
            launched = launch(execution)
        launches.append(len(launched))
        return launched

    def kernel(*args: Any, **kwargs: Any) -> torch.Tensor:
        with _disable_current_modes():
            return small_varlen_attn(*args, **kwargs)

    with (
        NoWaiting(),  # type: ignore[no-untyped-call]
        pytest.raises(AssertionError, match="waits for the device"),
    ):
        bool(torch.ones(1) > 0)
    monkeypatch.setattr(f"{VARLEN}.varlen_attn", kernel)
    monkeypatch.setattr(Execution, "launch", watched)
    settings = [{}, {"do_sample": True, "logprobs": 3}, *SETTINGS.values()]
    texts = [[{"role": "user", "content": text}] for text in TEXTS]
    await asyncio.gather(*(paged.run(task(text, one)) for text in texts for one in settings))
    assert sum(launches) > 0


@pytest.mark.parametrize("paged", ["qwen2"], indirect=True)
async def test_log_probabilities_with_a_step_in_flight(paged: Engine) -> None:
    """They belong to the token beside them, and are the same under load."""
    several = {"do_sample": True, "num_return_sequences": 3, "logprobs": 2, "presence_penalty": 1}
    wanted = [
        task([{"role": "user", "content": text}], settings)
        for text in TEXTS
        for settings in ({"logprobs": 0}, several, {"do_sample": True})
    ]
    alone = [paged.run_blocking(one) for one in wanted]
    assert await asyncio.gather(*map(paged.run, wanted)) == alone
    for one, response in zip(wanted, alone, strict=True):
        asked = one.generation_config.logprobs is not None
        for choice in response["choices"]:
            assert ("logprobs" in choice) == asked
            spelled = b"".join(bytes(token["bytes"] or ()) for token in choice.get("logprobs", ()))
            assert spelled.decode(errors="replace") == (
                choice["message"]["content"] if asked else ""
            )


@pytest.mark.parametrize("paged", ["qwen2"], indirect=True)
async def test_cancelled_while_a_step_is_in_flight(
    paged: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pages go to other tasks, whose answers are the same as alone."""
    long = task([{"role": "user", "content": TEXTS[1]}], {"max_new_tokens": 100})
    long_search = task([{"role": "user", "content": "Hi"}], {"max_new_tokens": 100, "num_beams": 3})
    others = [
        task([{"role": "user", "content": f"{n} {TEXTS[1]}"}], {"num_beams": 1 + n % 3})
        for n in range(6)
    ]
    alone = [paged.run_blocking(other) for other in others]

    async def cancelled(after: int) -> None:
        stream = paged.stream(long)
        for _ in range(after):
            await anext(stream)
        await stream.aclose()

    async def cancelled_search(before: int) -> None:
        """A search reports nothing before its end: cancel it after some steps."""
        steps = itertools.count(1)
        reached = threading.Event()
        advance = Execution._advance_beams

        def counted(execution: Execution, request: Request, candidates: torch.Tensor) -> None:
            advance(execution, request, candidates)
            if request.settings.max_new_tokens == 100 and next(steps) == before:
                reached.set()

        monkeypatch.setattr(Execution, "_advance_beams", counted)
        search = asyncio.create_task(paged.run(long_search))
        assert await asyncio.to_thread(reached.wait, 60)
        search.cancel()

    results = await asyncio.gather(
        cancelled_search(5),
        *(cancelled(after) for after in range(1, 4)),
        *(paged.run(other) for other in others),
    )
    assert results[4:] == alone
    paged.close()
    paged._loop.scheduler.check_integrity()
