"""Families that one record each has added write what plain transformers writes, in fp32.

A conversation with two images, alone and among others; what all families share is tested in
`test_families`.
"""

from __future__ import annotations

import asyncio

import pytest

from tests.engine.conftest import TinyEngine, TinyModel
from tests.engine.models.tiny_vision_models import FURTHER_KINDS, FurtherKind
from tests.engine.vision.vision_oracle import CONVERSATIONS, SETTINGS, oracle, task, texts

ALONE_ON_THE_DEVICE = {
    "molmo2": "later tokens",
    "paligemma": "later tokens",
    "video_llama_3": "depends on its position",
}
"""Kinds that continuous batching does not take, with words of the reason."""


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # PaliGemma, GLM
@pytest.mark.parametrize("kind", FURTHER_KINDS)
async def test_answers_as_transformers_does(
    kind: FurtherKind, tiny_model: TinyModel, tiny_engine: TinyEngine
) -> None:
    """Chunks are shorter than an image; the others are the same task and an image less."""
    engine = tiny_engine(kind, prefill_chunk=8, page_size=8)
    reason = engine.card()["fallback_reason"] or ""
    assert ALONE_ON_THE_DEVICE.get(kind, "") in reason
    assert engine.card()["continuous_batching"] == (kind not in ALONE_ON_THE_DEVICE)
    messages, own = CONVERSATIONS["two images"], oracle(tiny_model(kind))
    settings = [SETTINGS["greedy"], SETTINGS["sample"]]
    want = [own.answers(messages, each) for each in settings]
    asked = [task(messages, each) for each in settings]
    assert [texts(engine.run_blocking(one)) for one in asked] == want
    others = [engine.run(task(CONVERSATIONS["one image"], each)) for each in settings * 2]
    responses = await asyncio.gather(*(engine.run(one) for one in asked * 2), *others)
    assert [texts(response) for response in responses[:4]] == want * 2
