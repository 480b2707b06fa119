"""Drafts change no bit on the ways that few engines take, and nothing is left behind by them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from engine import Engine
from engine.execution.batch_sizes import BatchSizes
from engine.requests.request import ScheduledTokens
from engine.sampling.draws import noise
from engine.sampling.draws.noise import Noise, Place
from schema import Task
from tests.engine.conftest import TinyModel
from tests.engine.core.speculation.comparison import outcome
from tests.engine.core.speculation.drafts import DRAFTS
from tests.engine.core.speculation.engines import (
    OWN_SETTINGS,
    Guided,
    Script,
    opened,
    save_variant,
    tiny_vocabulary,
)
from tests.engine.core.speculation.properties import (
    Case,
    Way,
    check,
    differences,
    make_cases,
)
from tests.engine.core.speculation.random_tasks import Vocabulary
from tests.engine.execution.varlen_stand_in import PAGE, use_kernel
from tests.engine.models.tiny_models import Kind
from tests.engine.models.tiny_vision_models import VisionKind
from tests.engine.parallel.two_ranks import ForkServer, split

QWEN_IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


async def check_seeds(
    directory: Path, vocabulary: Vocabulary, seeds: Sequence[int], **options: Any
) -> None:
    """The tasks of some seeds, on engines with these options."""
    with opened(directory, **options, speculation="off") as off:
        cases = await make_cases(off, vocabulary, seeds)
    with opened(directory, **options) as on:
        found = await differences(Guided(on, vocabulary), cases)
    assert not found, "\n".join(map(str, found))


@pytest.fixture(scope="module")
def variant(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the model with images."""
    directory = tmp_path_factory.mktemp("variant") / "model"
    save_variant(tiny_model("internvl"), directory)
    return directory


@pytest.fixture(scope="module")
def off(variant: Path) -> Iterator[Engine]:
    """That model without speculation."""
    with opened(variant, speculation="off") as engine:
        yield engine


# --- Ways ----------------------------------------------------------------------------------------


async def test_a_step_ahead(variant: Path, off: Engine) -> None:
    """Drafts wait for the tokens before them, which the next step does not elsewhere."""
    vocabulary = tiny_vocabulary(variant)
    cases = await make_cases(off, vocabulary, range(300, 308))
    with opened(variant, lookahead=True) as on:
        found = await differences(Guided(on, vocabulary), cases)
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("kind", ["qwen2", "gemma3"])
async def test_a_paged_kernel(
    kind: Kind, tiny_model: TinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The CUDA path with a stand-in for its kernel; gemma3 looks back 24 tokens only."""
    use_kernel(monkeypatch)
    save_variant(tiny_model(kind), tmp_path / kind)
    vocabulary = tiny_vocabulary(tmp_path / kind, image=None)
    options = {"page_size": PAGE, "context_length": 504, "lookahead": True}
    await check_seeds(tmp_path / kind, vocabulary, range(320, 323), **options)


async def test_layers_on_two_devices(variant: Path) -> None:
    options = {"num_devices": 2, "split": "layers"}
    await check_seeds(variant, tiny_vocabulary(variant), range(330, 333), **options)


async def test_tensors_on_two_ranks(variant: Path) -> None:
    fork_server = ForkServer()
    vocabulary = tiny_vocabulary(variant)
    with split(variant, fork_server, speculation="off") as off:
        cases = await make_cases(off, vocabulary, range(340, 343))
    with split(variant, fork_server) as on:
        found = await differences(Guided(on, vocabulary), cases)
        on._loop.scheduler.check_integrity()
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize(
    ("kind", "image"),
    [
        ("gpt2", None),  # positions are learnt: there is none beyond the context
        ("gemma3", None),  # layers that look back 24 tokens
        ("qwen3_vl", "<|image_pad|>"),  # three rotary positions, image features in several layers
    ],
)
async def test_families(
    kind: Kind | VisionKind, image: str | None, tiny_model: TinyModel, tmp_path: Path
) -> None:
    written = QWEN_IMAGE if image else ""
    save_variant(tiny_model(kind), tmp_path / kind, image=written)
    vocabulary = tiny_vocabulary(tmp_path / kind, image=image)
    await check_seeds(tmp_path / kind, vocabulary, range(350, 353))


async def test_little_room(variant: Path) -> None:
    """Pages of one token, few of them, and few places: drafts have no room that is not reserved."""
    options = {"page_size": 1, "kv_cache_tokens": 1100, "max_sequences": 5}
    await check_seeds(variant, tiny_vocabulary(variant), range(360, 366), **options)


# --- Ends and edges ------------------------------------------------------------------------------


def task(text: str, seed: int = 0, **settings: Any) -> Task:
    return Task.from_fields(
        model="tiny",
        messages=[{"role": "user", "content": text}],
        generation_config={"max_new_tokens": 40, "do_sample": True} | settings,
        return_token_ids=True,
        seed=seed,
    )


async def case_of(engine: Engine, one: Task) -> Case:
    want = await outcome(engine, one)
    return Case(one.seed, one, want, [list(choice["token_ids"]) for choice in want["choices"]])


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
@pytest.mark.parametrize("drafts", DRAFTS)
async def test_up_to_the_end_of_the_context(drafts: str, kind: Kind, full: dict[str, Any]) -> None:
    """Prompt and answer fill the context; drafts that go on behind it are cut."""
    case, guided = full[kind]
    for known in ("nothing", "too long"):
        assert await check(guided, case, Way(drafts, known)) is None


@pytest.fixture(scope="module")
def full(tiny_model: TinyModel) -> Any:
    """For each kind of model a task that fills its context, and an engine."""
    made: dict[str, Any] = {}
    engines = []
    for kind in ("gpt2", "qwen2"):
        directory = tiny_model(kind)
        vocabulary = tiny_vocabulary(directory, image=None)
        options = {"context_length": 64, "page_size": 1, "max_sequences": 2}
        with opened(directory, **options, speculation="off") as off:
            one = Task.from_fields(
                model="tiny",
                prompt_token_ids=[*range(40, 79)],
                generation_config={"max_new_tokens": 25, "num_return_sequences": 2}
                | {"do_sample": True, "logit_bias": {str(vocabulary.end): -100}},
                return_token_ids=True,
            )
            case = asyncio.run(case_of(off, one))
        assert [len(answer) for answer in case.answers] == [25, 25]
        manager = opened(directory, **options)
        engines.append(manager)
        made[kind] = (case, Guided(manager.__enter__(), vocabulary))
    yield made
    for manager in engines:
        manager.__exit__(None, None, None)


async def test_drafts_save_steps(variant: Path) -> None:
    """Else all these tests would show nothing: right drafts are taken, and wrong ones are not."""
    vocabulary = tiny_vocabulary(variant)
    # Neither of the two can be a draft: an answer ends there, and images are placed by the other.
    unusual = {str(vocabulary.end): -100.0, str(vocabulary.image): -100.0}
    with opened(variant, max_sequences=64, speculation="off") as off:
        case = await case_of(off, task("Hi", logit_bias=unusual))
        steps = off.stats()["decode_steps"]
    assert steps == len(case.answers[0]) - 1
    with opened(variant, max_sequences=64) as on:
        guided = Guided(on, vocabulary)
        guided.take_all(True)
        taken = {}
        for drafts, known in (("right", "nothing"), ("wrong", "right"), ("wrong", "nothing")):
            before = on.stats()
            assert await check(guided, case, Way(drafts, known)) is None
            taken[drafts, known] = {k: v - before[k] for k, v in on.stats().items()}
    # The first step may follow the prompt at once, when there is no token yet to go on from.
    assert taken["right", "nothing"]["decode_steps"] <= 2
    assert taken["right", "nothing"]["drafts_accepted"] >= steps - 2
    assert taken["wrong", "right"]["decode_steps"] <= 2
    assert taken["wrong", "right"]["known_tokens_read"] >= steps - 2
    assert taken["wrong", "nothing"]["decode_steps"] == steps
    assert taken["wrong", "nothing"]["drafts_accepted"] == 0


@pytest.mark.parametrize("lookahead", [False, True])
async def test_clients_that_leave(lookahead: bool, variant: Path, off: Engine) -> None:
    """In the middle of an answer whose drafts are right; all pages come back, by `opened`."""
    vocabulary = tiny_vocabulary(variant)
    tasks = [task(f"{n} " * 9, n, num_return_sequences=1 + n % 3) for n in range(9)]
    cases = [await case_of(off, one) for one in tasks]
    with opened(variant, lookahead=lookahead) as on:
        guided = Guided(on, vocabulary)
        guided.take_all(True)

        async def leave(case: Case, after: int, kind: str) -> None:
            name = f"leaves-{case.seed}-{after}"
            guided.guesser.scripts[name] = Script(kind, case.answers, Random(after))
            handle = await on.submit(case.task, log_id=name, known=case.answers[:1])
            for _ in range(after):
                if not handle.done:
                    await handle.next()
            handle.cancel()

        leaving = [
            leave(case, after, kind)
            for case in cases
            for after, kind in enumerate(("right", "right then garbage", "anything"))
        ]
        staying = [check(guided, case, Way("anything", together=True)) for case in cases]
        found, _ = await asyncio.gather(asyncio.gather(*staying), asyncio.gather(*leaving))
        assert found == [None] * len(cases)


# --- Faults --------------------------------------------------------------------------------------

GUILTY = "the guilty one"


@pytest.mark.parametrize("place", ["forward", "processors"])
@pytest.mark.parametrize("lookahead", [False, True])
async def test_a_fault_ends_only_its_own_task(
    place: str, lookahead: bool, variant: Path, off: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a batch of drafts: of the forward of any batch that it is in, or of its own sampling."""
    tasks = [task(f"innocent {n}", n, repetition_penalty=1.1) for n in range(6)]
    cases = [await case_of(off, one) for one in tasks]
    guilty = await case_of(off, task(GUILTY, 9, repetition_penalty=1.1))
    with opened(variant, lookahead=lookahead) as on:
        guided = Guided(on, tiny_vocabulary(variant))
        guided.take_all(True)
        prompt = on._loaded.tokenizer(f"[user]{GUILTY}[assistant]")["input_ids"]
        if place == "forward":
            _fail_forwards(on, prompt, monkeypatch)
        else:
            _fail_sampling(prompt, monkeypatch)
        ways = [Way(kind, together=True) for kind in ("right", "wrong", "all but one", "ends")]
        every = [*((case, way) for case in cases for way in ways)]
        checks = [check(guided, *one) for one in every]
        failing = [outcome(on, guilty.task, str(n), known=guilty.answers[:n]) for n in range(2)]
        guided.guesser.scripts["0"] = Script("right", guilty.answers, Random(0))
        found, failed = await asyncio.gather(asyncio.gather(*checks), asyncio.gather(*failing))
        assert found == [None] * len(every)
        assert [one.get("error") for one in failed] == ["TaskExecutionError"] * 2
        assert await check(guided, cases[0], Way("right")) is None


def _fail_forwards(engine: Engine, prompt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """All forwards fail that have a draft, or the last token, of this prompt's answer."""
    runner = engine._loop.assembly.batching.runner
    step = runner.step

    def failing(batch: Sequence[ScheduledTokens], sizes: BatchSizes) -> Any:
        if any(not t.of_prompt and list(t.owner.prompt.token_ids) == prompt for t in batch):
            raise ValueError("a bug")
        return step(batch, sizes)

    monkeypatch.setattr(runner, "step", failing)


def _fail_sampling(prompt: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The processors of this prompt's task fail once its answer has four tokens."""
    process = RepetitionPenaltyLogitsProcessor.__call__

    def failing(self: Any, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        start = len(prompt)
        if input_ids.shape[1] >= start + 4 and input_ids[0, :start].tolist() == prompt:
            raise ValueError("a bug")
        scored: torch.Tensor = process(self, input_ids, scores)
        return scored

    monkeypatch.setattr(RepetitionPenaltyLogitsProcessor, "__call__", failing)


# --- Random numbers ------------------------------------------------------------------------------


async def test_random_numbers_are_bounded(
    variant: Path, off: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A choice whose drafts are right leaves the others behind, by no more than the bound."""
    steps = 5
    case = await case_of(off, task("Hi", num_return_sequences=3))
    vocabulary = tiny_vocabulary(variant)
    monkeypatch.setattr(noise, "MAX_BYTES", steps * 3 * vocabulary.size * 4)
    kept: list[int] = []
    draw = Noise.of

    def watched(self: Noise, places: Sequence[Place], vocab_size: int) -> torch.Tensor:
        drawn = draw(self, places, vocab_size)
        kept.append(self.num_kept)
        return drawn

    monkeypatch.setattr(Noise, "of", watched)
    first_only = replace(case, answers=[case.answers[0], [], []])
    with opened(variant) as on:
        guided = Guided(on, vocabulary)
        guided.take_all(True)
        assert await check(guided, first_only, Way("right")) is None
        assert await check(guided, case, Way("now and then", known="the last only")) is None
    assert 1 < max(kept) <= steps + 1


async def test_stopping_and_beginning_again(tiny_model: TinyModel, tmp_path: Path) -> None:
    """In the middle of an answer: right drafts, then none, then wrong ones, then right ones."""
    save_variant(tiny_model("internvl"), tmp_path / "model", OWN_SETTINGS["particular"])
    vocabulary = tiny_vocabulary(tmp_path / "model")
    one = task("one two one two", num_return_sequences=2, logprobs=2, frequency_penalty=0.5)
    with opened(tmp_path / "model", speculation="off") as off:
        case = await case_of(off, one)
    with opened(tmp_path / "model") as on:
        guided = Guided(on, vocabulary)
        guided.take_all(True)
        for seed in range(12):
            again = replace(case, seed=seed)
            assert await check(guided, again, Way("now and then", "truncated")) is None
