"""The ways to run the same tasks in one process that the benchmark compares.

Each peer has its own process (`benchmarks.engine.worker`). The clock favours the peers of
transformers: they tokenize before it starts and decode their answers after it has stopped, while
the engine is given text and streams text.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from zlib import crc32

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    ContinuousBatchingConfig,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.generation.continuous_batching.utils import WorkloadHints

from benchmarks.engine.peer import Peer, PeerSettings, TaskResult
from benchmarks.harness.client import Endpoint, Job
from benchmarks.harness.engine_api import Engine, EngineClient, EngineConfig, default_page_size
from benchmarks.harness.peers import CB_BATCH_TOKENS, CB_PAGE_SIZE

ENGINE = "engine"
SAMPLING_ENGINE = "engine, sampling"
RELAXED_ENGINE = "engine, deterministic: false"
INT8_ENGINE = "engine, INT8"
ONE_AT_A_TIME = "generate one at a time"
STATIC_BATCH = "generate, static batch"
CONTINUOUS = "transformers continuous batching"


_CB_SETTINGS = (
    *("page_size", "num_blocks", "max_batch_tokens", "max_requests_per_batch"),
    *("allow_block_sharing", "safety_margin", "scheduler_type", "use_cuda_graph"),
    *("use_async_batching", "default_compile_level"),
)


class EnginePeer(Peer):
    """This repository's engine; every task is a stream on one event loop."""

    def __init__(self, settings: PeerSettings, **options: Any) -> None:
        page_size = default_page_size(settings.torch_device)
        config: dict[str, Any] = {
            "model": settings.model_dir,
            "model_id": "benchmark",
            "dtype": settings.dtype,
            "device": settings.device,
            "threads": settings.threads,
            "max_sequences": settings.max_tasks,
            "max_waiting": settings.max_tasks,
            "kv_cache_tokens": settings.kv_blocks(page_size) * page_size,
            "local_files_only": True,
        }
        config |= options | dict(settings.engine_options)
        self._engine = Engine(EngineConfig(**config))
        bits = config.get("quantize_bits")  # a task that names none asks for none
        self._asked = {"quantize_bits": bits} if bits else {}

    def run(self, tasks: Sequence[Job]) -> list[TaskResult]:
        return asyncio.run(self._stream_all(tasks))

    async def _stream_all(self, tasks: Sequence[Job]) -> list[TaskResult]:
        client = EngineClient(self._engine, Endpoint("", "benchmark", "tasks", self._asked))
        start = time.perf_counter()
        answers = await asyncio.gather(*map(client.send, tasks))
        for task, answer in zip(tasks, answers, strict=True):
            assert answer.usage["prompt_tokens"] == len(task.text), "the engine saw another prompt"
        return [
            TaskResult(
                answer.usage["completion_tokens"],
                answer.lines[0][0] - start,
                answer.sent + answer.seconds - start,
                answer.text,
            )
            for answer in answers
        ]

    def description(self) -> dict[str, Any]:
        card = self._engine.card()
        names = (
            "max_sequences",
            "kv_cache_tokens",
            "prefill_chunk",
            "batch_sizes",
            "continuous_batching",
        )
        return {name: card[name] for name in (*names, "fallback_reason") if name in card}

    def close(self) -> None:
        self._engine.close()


class SamplingEnginePeer(EnginePeer):
    """The same, but each task draws its tokens with a seed of its own, at temperature 1."""

    def run(self, tasks: Sequence[Job]) -> list[TaskResult]:
        return super().run([replace(task, seed=crc32(task.text.encode())) for task in tasks])


class _TransformersPeer(Peer):
    """What the peers that use transformers' own model have in common."""

    def __init__(self, settings: PeerSettings) -> None:
        torch.set_num_threads(settings.threads)
        # As the engine does, so that arithmetic in float32 is the same arithmetic on a GPU.
        torch.backends.cuda.matmul.allow_tf32 = False
        self.device = settings.torch_device
        self.tokenizer: Any = AutoTokenizer.from_pretrained(settings.model_dir)
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            settings.model_dir,
            dtype=getattr(torch, settings.dtype),
            attn_implementation="sdpa",
            device_map={"": self.device},
        )
        self.model.eval()

    def description(self) -> dict[str, Any]:
        return {"attention": self.model.config._attn_implementation}

    def ids(self, task: Job) -> list[int]:
        """The prompt's token ids, the same that the engine makes of its text."""
        ids: list[int] = self.tokenizer(task.text, add_special_tokens=False)["input_ids"]
        assert len(ids) == len(task.text)
        return ids

    def text(self, ids: Sequence[int]) -> str:
        """An answer's text."""
        text = self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class _FirstToken(StoppingCriteria):
    """Notes when `generate` has its first token; stops nothing."""

    def __init__(self) -> None:
        self.time: float | None = None

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        if self.time is None:
            input_ids[0, -1].item()  # wait for the device
            self.time = time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


class GeneratePeer(_TransformersPeer):
    """`generate`: one task after the other, or all of them as one padded batch."""

    def __init__(self, settings: PeerSettings, *, static_batch: bool) -> None:
        super().__init__(settings)
        self._static_batch = static_batch

    def run(self, tasks: Sequence[Job]) -> list[TaskResult]:
        prompts = [self.ids(task) for task in tasks]
        batches = [range(len(tasks))] if self._static_batch else [[i] for i in range(len(tasks))]
        timed: list[tuple[list[int], float, float]] = []
        start = time.perf_counter()
        for batch in batches:
            first = _FirstToken()
            answers = self._generate(
                [prompts[i] for i in batch], max(tasks[i].max_tokens for i in batch), first
            )
            last = time.perf_counter() - start
            assert first.time is not None
            timed += [(answer, first.time - start, last) for answer in answers]
        results = []
        for task, (answer, first_s, last_s) in zip(tasks, timed, strict=True):
            asked = answer[: task.max_tokens]  # the rest was generated, but not asked for
            results.append(TaskResult(len(asked), first_s, last_s, self.text(asked)))
        return results

    def _generate(
        self, prompts: list[list[int]], max_new_tokens: int, first: _FirstToken
    ) -> list[list[int]]:
        """One call; prompts are padded on the left."""
        length = max(map(len, prompts))
        ids = torch.zeros(len(prompts), length, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            mask[row, length - len(prompt) :] = 1
        output = self.model.generate(
            input_ids=ids.to(self.device),
            attention_mask=mask.to(self.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            stopping_criteria=StoppingCriteriaList([first]),
        )
        answers: list[list[int]] = output[:, length:].tolist()
        return answers


class ContinuousBatchingPeer(_TransformersPeer):
    """transformers' own continuous batching, with settings chosen in its favour.

    The cache holds every run's worst case and is made once, outside the clock; no part of it is
    kept in reserve; block sharing is off because no two prompts begin alike. On CUDA the size of
    pages and steps is left to the library, as is the switch to flash attention where that is
    installed. Tokens are not streamed, only their times recorded.
    """

    def __init__(self, settings: PeerSettings) -> None:
        super().__init__(settings)
        options: dict[str, Any] = {} if settings.on_cuda else {"page_size": CB_PAGE_SIZE}
        batch_tokens = settings.cb_batch_tokens or (None if settings.on_cuda else CB_BATCH_TOKENS)
        config = ContinuousBatchingConfig(
            **options,
            max_batch_tokens=batch_tokens,
            allow_block_sharing=False,
            safety_margin=0.0,
        )
        config.num_blocks = settings.kv_blocks(config.page_size)
        self._arguments: dict[str, Any] = {
            "generation_config": GenerationConfig(do_sample=False, eos_token_id=-1),
            "continuous_batching_config": config,
            "workload_hints": WorkloadHints(
                max_prompt_length=settings.max_prompt,
                max_generated_length=settings.max_answer,
                num_requests=settings.max_tasks,
            ),
            "persistent_manager": True,
        }
        self._config = config

    def run(self, tasks: Sequence[Job]) -> list[TaskResult]:
        prompts = [self.ids(task) for task in tasks]
        done: dict[str, Any] = {}
        # Its thread wakes ten times a second when it is idle: it lives only while this peer works.
        with self.model.continuous_batching_context_manager(**self._arguments) as manager:
            start = time.perf_counter()
            names = [
                manager.add_request(prompt, max_new_tokens=task.max_tokens, record_timestamps=True)
                for prompt, task in zip(prompts, tasks, strict=True)
            ]
            while len(done) < len(tasks):
                output = manager.get_result(timeout=1)
                if output is None:
                    if not manager.is_running():
                        raise RuntimeError("transformers' generation thread has stopped")
                elif output.error is not None:
                    raise RuntimeError(f"transformers failed a request: {output.error}")
                else:
                    done[output.request_id] = (output, time.perf_counter() - start)
            self._config = manager.continuous_batching_config
        results = []
        for name in names:
            output, last_s = done[name]
            ids = output.generated_tokens
            first_s = output.timestamps[0] - start
            results.append(TaskResult(len(ids), first_s, last_s, self.text(ids)))
        return results

    def description(self) -> dict[str, Any]:
        """The settings as the library resolved them in the last run."""
        return super().description() | {n: getattr(self._config, n) for n in _CB_SETTINGS}

    def close(self) -> None:
        self.model.destroy_cached_continuous_batching_manager()


_PEERS: dict[str, Callable[[PeerSettings], Peer]] = {
    ENGINE: EnginePeer,
    SAMPLING_ENGINE: SamplingEnginePeer,
    RELAXED_ENGINE: partial(EnginePeer, deterministic=False),
    INT8_ENGINE: partial(EnginePeer, quantize_bits=8),
    ONE_AT_A_TIME: partial(GeneratePeer, static_batch=False),
    STATIC_BATCH: partial(GeneratePeer, static_batch=True),
    CONTINUOUS: ContinuousBatchingPeer,
}


_ON_REQUEST: dict[str, Callable[[PeerSettings], Peer]] = {
    INT8_ENGINE: partial(EnginePeer, quantize_bits=8),
}


def peer_names() -> list[str]:
    """The peers that are compared unless others are asked for, the engine first."""
    return list(_PEERS)


def further_names() -> list[str]:
    """Those that have to be asked for, because they compute something else."""
    return list(_ON_REQUEST)


def load_peer(name: str, settings: PeerSettings) -> Peer:
    """Load a peer's model. Blocking."""
    return (_PEERS | _ON_REQUEST)[name](settings)
