"""The least that serves a model: ``generate`` behind HTTP, one request after the other.

This is how gpt-task runs a task (seed everything, `generate`, give back), with as little around it
as will stream the answer in the form of ``/v1/chat/completions``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import torch
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tokenizers.decoders import DecodeStream
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)
from transformers.generation.streamers import BaseStreamer

from benchmarks.serving.transformers_serve import load_processor


class _Streamer(BaseStreamer):
    """Hands on the text of each token as soon as there is one."""

    def __init__(self, tokenizer: Any, push: Callable[[str], None]) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._push = push
        self.tokens = -1  # the first call brings the prompt

    def put(self, value: torch.Tensor) -> None:
        """Called by `generate` with the prompt, then with each token."""
        self.tokens += 1
        if self.tokens > 0 and (text := self._decoder.step(self._tokenizer, int(value[0]))):
            self._push(text)

    def end(self) -> None:
        """Called by `generate` after the last token."""


class _Abandoned(StoppingCriteria):
    """Stops when the client has gone."""

    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        gone = self.event.is_set()
        return torch.full((len(input_ids),), gone, dtype=torch.bool, device=input_ids.device)


class Pipeline:
    """One model, and the lock that makes requests wait for one another."""

    def __init__(self, source: str, dtype: str, *, images: bool) -> None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        kind: Any = AutoModelForImageTextToText if images else AutoModelForCausalLM
        self._model: Any = kind.from_pretrained(
            source, dtype=getattr(torch, dtype), device_map={"": device}
        )
        self._processor: Any = (
            load_processor(source) if images else AutoTokenizer.from_pretrained(source)
        )
        self._tokenizer = self._processor.tokenizer if images else self._processor
        self._lock = asyncio.Lock()

    async def events(self, body: dict[str, Any]) -> AsyncIterator[bytes]:
        """The answer to a chat completion, streamed."""
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def push(text: str | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, text)

        abandoned = _Abandoned()
        async with self._lock:
            streamer = _Streamer(self._tokenizer, push)
            work = asyncio.create_task(
                asyncio.to_thread(self._generate, body, streamer, abandoned, push)
            )
            try:
                while (text := await queue.get()) is not None:
                    yield _event({"content": text}, None)
                prompt_tokens = await work
            finally:
                abandoned.event.set()
                await asyncio.wait([work])
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": streamer.tokens}
        yield _event({}, "stop", usage)
        yield b"data: [DONE]\n\n"

    def _generate(
        self,
        body: dict[str, Any],
        streamer: _Streamer,
        abandoned: _Abandoned,
        push: Callable[[str | None], None],
    ) -> int:
        try:
            inputs = self._inputs(body["messages"])
            set_seed(body.get("seed") or 0)
            temperature = body.get("temperature", 1.0)
            how: dict[str, Any] = {}
            if temperature:
                how = {"do_sample": True, "temperature": temperature, "top_k": body.get("top_k")}
            self._model.generate(
                **inputs,
                **{"do_sample": False, **how},
                max_new_tokens=body["max_tokens"],
                streamer=streamer,
                stopping_criteria=StoppingCriteriaList([abandoned]),
            )
            return int(inputs["input_ids"].shape[1])
        finally:
            push(None)

    def _inputs(self, messages: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        said = []
        for message in messages:
            blocks = message["content"]
            if not isinstance(blocks, str):
                blocks = [_block(block) for block in blocks]
            said.append({"role": message["role"], "content": blocks})
        made = self._processor.apply_chat_template(
            said, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        inputs = {name: tensor.to(self._model.device) for name, tensor in made.items()}
        if "pixel_values" in inputs:
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        return inputs


def _block(block: dict[str, Any]) -> dict[str, Any]:
    if block["type"] != "image_url":
        return block
    data = base64.b64decode(block["image_url"]["url"].partition(",")[2])
    return {"type": "image", "image": Image.open(io.BytesIO(data)).convert("RGB")}


def _event(delta: dict[str, Any], reason: str | None, usage: dict[str, int] | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return b"data: " + json.dumps({"choices": [choice], "usage": usage}).encode() + b"\n\n"


def application(pipeline: Pipeline) -> Starlette:
    """The server's two routes."""

    async def complete(request: Request) -> Response:
        return StreamingResponse(
            pipeline.events(await request.json()), media_type="text/event-stream"
        )

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/v1/chat/completions", complete, methods=["POST"]),
            Route("/health", health),
        ]
    )


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving.one_at_a_time")
    parser.add_argument("source")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    pipeline = Pipeline(options.source, options.dtype, images=options.images)
    uvicorn.run(application(pipeline), host="127.0.0.1", port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
