"""`run_task` with gpt-task's signature."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from engine import Engine
from engine.platform.platforms import best_platform
from gpt_task.cache import ModelCache
from gpt_task.config import Config, get_config
from gpt_task.inference import execution
from gpt_task.inference.errors import TaskArgsInvalid, translated_errors
from gpt_task.inference.key import generate_model_key
from gpt_task.inference.loaded import LoadedModel
from gpt_task.inference.translation import ChunkStream, engine_config, to_response, to_task
from gpt_task.models import (
    GPTGenerationConfig,
    GPTTaskArgs,
    GPTTaskResponse,
    GPTTaskStreamResponse,
    Message,
)
from gpt_task.proxy import proxied
from schema.task import Dtype, QuantizeBits, Task

logger = logging.getLogger(__name__)

StreamCallback = Callable[[GPTTaskStreamResponse], None]


def run_task(
    args: GPTTaskArgs | None = None,
    *,
    model: str | None = None,
    messages: Sequence[Message | Mapping[str, Any]] | None = None,
    tools: Sequence[dict[str, Any]] | None = None,
    generation_config: GPTGenerationConfig | Mapping[str, Any] | None = None,
    template_args: Mapping[str, Any] | None = None,
    stream_callback: StreamCallback | None = None,
    seed: int = 0,
    dtype: Dtype = "auto",
    quantize_bits: QuantizeBits | None = None,
    config: Config | None = None,
    model_cache: ModelCache[Any] | None = None,
) -> GPTTaskResponse | None:
    """Run one task, in process.

    Args:
        args: the task; or its fields as keyword arguments, which ``args`` overrides.
        model, messages, tools, generation_config, template_args, seed, dtype, quantize_bits: the
            fields of `GPTTaskArgs`.
        stream_callback: called with each chunk of the first answer; `run_task` then returns None.
        config: where models come from; `get_config()` without it.
        model_cache: keeps the loaded model for the next task; without it the model is dropped.

    Raises:
        One of `gpt_task.inference.errors`.
    """
    fields = {
        "model": model,
        "messages": messages,
        "tools": tools,
        "generation_config": generation_config,
        "template_args": template_args,
        "seed": seed,
        "dtype": dtype,
        "quantize_bits": quantize_bits,
    }
    if config is None:
        config = get_config()
    execution.begin(gpu_count=0 if best_platform().num_devices() is None else 1)
    with translated_errors():
        args = GPTTaskArgs.model_validate(fields) if args is None else _alone(args, fields)
        return _run(args, stream_callback, config, model_cache)


def _alone(args: Any, fields: dict[str, Any]) -> GPTTaskArgs:
    if not isinstance(args, GPTTaskArgs):
        raise TaskArgsInvalid(
            f"args must be a GPTTaskArgs, not a {type(args).__name__}; give the fields of a task "
            "as keyword arguments"
        )
    unset = {"seed": 0, "dtype": "auto"}
    if given := [name for name, value in fields.items() if value != unset.get(name)]:
        logger.warning("args is given, which overrides %s", ", ".join(given))
    return args


def _run(
    args: GPTTaskArgs,
    stream_callback: StreamCallback | None,
    config: Config,
    model_cache: ModelCache[Any] | None,
) -> GPTTaskResponse | None:
    with on_engine(args, config, model_cache) as (engine, task):
        if stream_callback is None:
            return to_response(args.model, engine.run_blocking(task))
        if (number := task.generation_config.num_return_sequences or 1) > 1:
            logger.warning("only the first of %d answers is streamed, as in gpt-task", number)
        stream = ChunkStream(args.model, stream_callback)
        stream.end(engine.run_blocking(task, stream.take))
        return None


@contextmanager
def on_engine(
    args: GPTTaskArgs, config: Config, model_cache: ModelCache[Any] | None
) -> Iterator[tuple[Engine, Task]]:
    """The engine of a task's model, and the task as that engine takes it.

    Without a cache the model is dropped at the end.

    Raises:
        TaskError: the task is invalid, or its model cannot be loaded.
        TypeError: the cache returns something else than what was loaded.
    """
    task = to_task(args)

    def load() -> LoadedModel:
        with proxied(config.proxy):
            return LoadedModel(engine_config(args, config))

    loaded = load() if model_cache is None else model_cache.load(generate_model_key(args), load)
    if not isinstance(loaded, LoadedModel):
        raise TypeError(
            f"model_cache.load returned a {type(loaded).__name__} and not what model_loader made"
        )
    # A task of the contract never names a directory; an engine's model may be one.
    task = task.model_copy(update={"model": loaded.engine.config.name})
    try:
        execution.loaded(loaded.engine.card()["dtype"])
        yield loaded.engine, task
    finally:
        if model_cache is None:
            loaded.close()
