"""The generate fallback: tasks that cannot be batched get the answers of `generate`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, set_seed

from engine import Engine, EngineConfig
from engine.platform.cpu import CpuPlatform
from schema import Task, TaskArgsInvalid
from tests.engine.conftest import TinyEngine
from tests.engine.models.tiny_models import byte_tokenizer
from tests.engine.sampling.test_beam_search import Reference, outcome, stopped_search
from tests.engine.sampling.test_generate_oracle import plainly

TEXT = "The engine must write what generate writes, for a prompt of several chunks too."

# Architectures and the configuration that keeps them out of the batch loop.
OUTSIDE: dict[str, dict[str, Any]] = {
    "mpt": {"n_heads": 4, "n_layers": 2, "max_seq_len": 512},  # ALiBi, attention of its own
    "bloom": {"n_head": 4, "n_layer": 2},  # ALiBi, attention of its own
}
INSIDE: dict[str, dict[str, Any]] = {
    "phi3": {  # other rotary factors for long sequences
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [2.0] * 8,
            "original_max_position_embeddings": 32,
        },
    },
    "mixtral": {"num_local_experts": 4},
    "mistral": {"sliding_window": 8},
    "qwen2": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 6},
    "cohere2": {"sliding_window": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 64},
    "gemma2": {"head_dim": 16, "sliding_window": 8},  # soft capping of scores
    "gpt_oss": {"head_dim": 16, "num_local_experts": 4, "sliding_window": 8},  # sinks
    "falcon": {"num_attention_heads": 4},  # attention of its own, and heads with one key
    "gpt_neo": {  # attention of its own, and windows in every second layer
        "attention_types": [[["global", "local"], 1]],
        "num_layers": 2,
        "num_heads": 4,
        "window_size": 8,
    },
    "diffllama": {"head_dim": 16},  # two attentions a layer
    "nemotron": {"head_dim": 16},  # its layers hand no arguments on to attention
    "phimoe": {"num_local_experts": 4, "sliding_window": 8},  # a window that only its mask has
    "llama4_text": {  # so are chunks
        "head_dim": 16,
        "attention_chunk_size": 8,
        "intermediate_size_mlp": 96,
        "num_local_experts": 2,
        "num_hidden_layers": 4,
        "no_rope_layer_interval": 4,
    },
}


def save_architecture(kind: str, options: dict[str, Any], directory: Path) -> None:
    tokenizer = byte_tokenizer()
    end = tokenizer.eos_token_id
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "eos_token_id": end,
        "bos_token_id": end,
        "pad_token_id": end,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**settings | options))
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


@lru_cache(maxsize=1)
def plain(directory: Path) -> tuple[Any, Any]:
    """Tokenizer and model of plain transformers, for all questions of a test."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return AutoTokenizer.from_pretrained(directory), model


def generated(directory: Path, text: str, settings: dict[str, Any]) -> list[str]:
    """What plain transformers writes."""
    tokenizer, model = plain(directory)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    set_seed(5)
    output = model.generate(
        ids, attention_mask=torch.ones_like(ids), **plainly(settings, ids.shape[1])
    )
    return [tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in output]


def task(text: str, settings: dict[str, Any]) -> Task:
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": text}],
        generation_config=settings,
        seed=5,
    )


def answers(engine: Engine, text: str, settings: dict[str, Any]) -> list[str]:
    response = engine.run_blocking(task(text, settings))
    return [choice["message"]["content"] for choice in response["choices"]]


def fallback_engine(directory: Path, **options: Any) -> Engine:
    settings: dict[str, Any] = {"dtype": "float32", "threads": 1, "context_length": 512}
    return Engine(EngineConfig(model=str(directory), **settings | options))


SETTINGS: tuple[dict[str, Any], ...] = (
    {"max_new_tokens": 40},
    {"max_new_tokens": 40, "do_sample": True, "num_return_sequences": 2},
    {"max_new_tokens": 10, "num_beams": 2},
    {"max_new_tokens": 10, "frequency_penalty": 2, "logit_bias": {"70": 3}},
)


@pytest.mark.parametrize("kind", OUTSIDE)
def test_models_that_only_generate_can_run(kind: str, tmp_path: Path) -> None:
    save_architecture(kind, OUTSIDE[kind], tmp_path)
    engine = fallback_engine(tmp_path)
    card = engine.card()
    assert not card["continuous_batching"]
    assert card["fallback_reason"]
    for text in ("Hi", TEXT):
        for settings in SETTINGS:
            assert answers(engine, text, settings) == generated(tmp_path, text, settings)
    greedy = {"max_new_tokens": 10}
    several = answers(engine, TEXT, greedy | {"num_return_sequences": 2})
    assert several == generated(tmp_path, TEXT, greedy) * 2
    chunks: list[Any] = []
    engine.run_blocking(task(TEXT, SETTINGS[1]), chunks.append)
    assert len(chunks) > 3  # streamed as it was written
    engine.close()


def test_the_callers_random_numbers_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`generate` draws from the global generator; who has the answer may seed it at once."""

    @contextmanager
    def slowly_kept(self: CpuPlatform, device: torch.device) -> Iterator[None]:
        with torch.random.fork_rng(devices=[]):
            yield
            time.sleep(0.2)  # as on a busy machine

    monkeypatch.setattr(CpuPlatform, "random_state_kept", slowly_kept)
    save_architecture("bloom", OUTSIDE["bloom"], tmp_path)
    with closing(fallback_engine(tmp_path)) as engine:
        torch.manual_seed(1)
        wanted = torch.rand(2)
        answers(engine, "Hi", SETTINGS[1])
        torch.manual_seed(1)
        time.sleep(0.4)
        assert torch.equal(torch.rand(2), wanted)


@pytest.mark.parametrize("kind", INSIDE)
def test_models_that_the_batch_loop_runs(kind: str, tmp_path: Path) -> None:
    """Windows shorter than the prompt, and other families than the tests' usual ones."""
    save_architecture(kind, INSIDE[kind], tmp_path)
    engine = Engine(EngineConfig(model=str(tmp_path), dtype="float32", threads=1, prefill_chunk=16))
    assert engine.card()["continuous_batching"]
    for text in ("Hi", TEXT):
        for settings in SETTINGS:
            assert answers(engine, text, settings) == generated(tmp_path, text, settings)
    engine.close()


@pytest.mark.parametrize(
    ("kind", "options", "tokens"),
    [("mamba", {"state_size": 4}, 4096), ("mpt", {"n_heads": 4, "n_layers": 2}, 2048)],
)
def test_models_that_say_their_context_elsewhere_or_nowhere(
    kind: str, options: dict[str, Any], tokens: int, tmp_path: Path
) -> None:
    save_architecture(kind, options, tmp_path)
    file = tmp_path / "config.json"
    fields = json.loads(file.read_text())
    del fields["max_position_embeddings"]  # which these architectures have not
    file.write_text(json.dumps(fields))
    settings = SETTINGS[0]
    with closing(fallback_engine(tmp_path, context_length=None)) as engine:
        assert engine.card()["context_length"] == tokens
        assert answers(engine, "Hi", settings) == generated(tmp_path, "Hi", settings)
        with pytest.raises(TaskArgsInvalid, match=str(tokens)):
            engine.run_blocking(task("x" * tokens, settings))
    with closing(fallback_engine(tmp_path, context_length=100)) as engine:
        assert engine.card()["context_length"] == 100


@pytest.mark.parametrize("number", [1, 3])
def test_stop_strings_in_the_fallback(number: int, tmp_path: Path) -> None:
    """Each answer ends where its own text first has the stop string; the others continue."""
    save_architecture("bloom", OUTSIDE["bloom"], tmp_path)
    settings = {"max_new_tokens": 60, "do_sample": True, "num_return_sequences": number}
    whole = generated(tmp_path, TEXT, settings)
    stop = next(c for c in whole[0][2:] if c.isascii())
    engine = fallback_engine(tmp_path)
    response = engine.run_blocking(task(TEXT, settings | {"stop_strings": [stop]}))
    engine.close()
    for choice, text in zip(response["choices"], whole, strict=True):
        expected = text[: text.index(stop) + 1] if stop in text else text
        assert choice["message"]["content"] == expected
        if stop in text:
            assert choice["finish_reason"] == "stop"


def test_stop_strings_end_beams(tmp_path: Path) -> None:
    save_architecture("mpt", OUTSIDE["mpt"], tmp_path)
    asked = {"max_new_tokens": 24, "num_beams": 3, "num_return_sequences": 3}
    stop, want = stopped_search(Reference(tmp_path), TEXT, asked)
    with closing(fallback_engine(tmp_path)) as engine:
        response = engine.run_blocking(task(TEXT, asked | {"stop_strings": [stop]}))
    assert outcome(response) == want


def test_what_runs_alone_is_bounded(tmp_path: Path, tiny_engine: TinyEngine) -> None:
    """All other tasks wait while it runs; batched tasks are limited by the cache only."""
    save_architecture("bloom", OUTSIDE["bloom"], tmp_path)
    wide = {"num_beams": 4, "max_new_tokens": 26}
    with closing(fallback_engine(tmp_path, max_exclusive_tokens=100)) as engine:
        for settings in (wide, {"max_new_tokens": 101}):
            with pytest.raises(TaskArgsInvalid, match="100") as caught:
                engine.run_blocking(task("hi", settings))
            assert caught.value.param == "generation_config.max_new_tokens"
        engine.run_blocking(task("hi", wide | {"max_new_tokens": 25}))
    tiny_engine("qwen2", max_exclusive_tokens=100).run_blocking(task("hi", wide))
