"""A request with several prompts: a task for each, a few of them at a time, their answers as one.

Each task goes through the graph as if it were alone: it is routed, waits, fails over and is
cancelled like any other. One that is refused because there is no room waits here, as long as
others of the request run or have ended.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import replace
from typing import Any, NamedTuple, cast

from starlette.responses import Response

from schema.answers.response import StreamChunk, TaskResponse, Usage
from schema.clients.openai import CompletionRequest
from schema.errors import Overloaded, TaskError
from schema.task import Task
from serve_app.graph.dispatcher import Dispatcher
from serve_app.graph.retry import PAUSE_S
from serve_app.http.bodies import json_response
from serve_app.http.clients.answering import begun
from serve_app.http.clients.openai.answers import CompletionAnswer
from serve_app.http.clients.openai.logprobs import PromptsTold
from serve_app.http.places import FurtherPlaces
from serve_app.http.sse import relay
from serve_app.observability.identity import call_as_another_request
from serve_app.observability.request_record import Entry, current, entry
from serve_app.protocol.failures import as_task_error

MAX_UNREAD = 64
"""Chunks that wait for the client. A task that has another one waits too, and its engine merges
what it makes meanwhile."""


async def answer_list(
    dispatcher: Dispatcher, asked: CompletionRequest, num_bytes: int, places: FurtherPlaces
) -> Response:
    """Run the tasks of a request's prompts, and answer with all of them.

    Raises:
        TaskError: of the first task that failed, in the request's terms.
    """
    seed, answer, headers = begun(asked, CompletionAnswer)
    tasks = [asked.task(seed, number) for number in range(asked.num_prompts)]
    listed = PromptList(dispatcher, asked, tasks, num_bytes, places)
    if asked.stream:
        return await relay(listed.stream(), answer, headers)
    return json_response(answer.whole_list(await listed.run()), headers=headers)


class _News(NamedTuple):
    """A chunk of a task, or its whole response; or its end, maybe with an error."""

    number: int
    answer: Any = None
    error: TaskError | None = None


class PromptList:
    """The tasks of one request. Used once, on one event loop."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        asked: CompletionRequest,
        tasks: Sequence[Task],
        num_bytes: int,
        places: FurtherPlaces,
    ) -> None:
        """Nothing is sent yet.

        Args:
            dispatcher: where the tasks go.
            asked: the request.
            tasks: one for each of its prompts.
            num_bytes: of the request.
            places: for the tasks that run beside the first one.
        """
        self._dispatcher = dispatcher
        self._asked = asked
        self._tasks = tasks
        self._num_bytes = num_bytes
        self._places = places
        self._deadline = dispatcher.deadline()
        self._news = asyncio.Queue[_News](MAX_UNREAD)
        self._waiting = deque(range(len(tasks)))
        self._running: dict[int, tuple[asyncio.Task[None], AbstractContextManager[None]]] = {}
        self._at_once = dispatcher.prompts_at_once
        self._usages: dict[int, Usage] = {}
        self._entry = entry()
        places.count(len(tasks) - 1)

    async def run(self) -> list[TaskResponse]:
        """The whole answers, in the order of the prompts. Raises as `stream` does."""
        responses: dict[int, TaskResponse] = {}
        told = PromptsTold(self._asked)  # counted before they fill the memory
        async with aclosing(self._answers(streamed=False)) as answers:
            async for number, response in answers:
                told.add(response, self._asked.n or 1)
                responses[number] = response
        self._entry.usage = self._usage()
        return [responses[number] for number in range(len(self._tasks))]

    async def stream(self) -> AsyncGenerator[StreamChunk, None]:
        """The chunks of all answers as they come, with indices and usage over all of them.

        Raises:
            TaskError: of the first task that failed, in the request's terms; the others are
                cancelled.
        """
        per_prompt = self._asked.n or 1
        async with aclosing(self._answers(streamed=True)) as answers:
            async for number, chunk in answers:
                choices = [
                    {**choice, "index": number * per_prompt + choice["index"]}
                    for choice in chunk["choices"]
                ]
                usage = self._usage()
                self._entry.streamed(usage)
                yield cast(StreamChunk, {**chunk, "choices": choices, "usage": usage})

    async def _answers(self, *, streamed: bool) -> AsyncGenerator[tuple[int, Any], None]:
        """What the tasks answer, with the numbers of their prompts."""
        try:
            while self._waiting or self._running:
                self._start(streamed=streamed)
                number, answer, error = await self._news.get()
                if answer is not None:
                    self._usages[number] = answer["usage"]
                    yield number, answer
                    continue
                self._end(number)
                if error is None:
                    self._at_once = min(self._at_once + 1, self._dispatcher.prompts_at_once)
                elif isinstance(error, Overloaded) and (self._running or self._usages):
                    self._waiting.appendleft(number)
                    self._at_once = max(1, len(self._running))
                    if not self._running:
                        await asyncio.sleep(PAUSE_S)
                else:
                    raise self._asked.in_own_terms(error, number) from error
        finally:
            await self._cancel()

    def _start(self, *, streamed: bool) -> None:
        """Start tasks while there are places. The first one has that of the request."""
        while self._waiting and len(self._running) < self._at_once:
            place = self._places.take() if self._running else nullcontext()
            if place is None:
                return
            place.__enter__()
            number = self._waiting.popleft()
            noted = replace(self._entry)
            context = contextvars.copy_context()
            context.run(call_as_another_request)
            context.run(current.set, noted)
            work = asyncio.get_running_loop().create_task(
                self._work(number, noted, streamed=streamed), context=context
            )
            self._running[number] = (work, place)

    async def _work(self, number: int, noted: Entry, *, streamed: bool) -> None:
        """Run one task, and say what comes of it."""
        task, error = self._tasks[number], None
        try:
            if streamed:
                chunks = self._dispatcher.stream(task, self._num_bytes, deadline=self._deadline)
                async with aclosing(chunks):
                    async for chunk in chunks:
                        await self._news.put(_News(number, chunk))
            else:
                response = await self._dispatcher.run(
                    task, self._num_bytes, deadline=self._deadline
                )
                await self._news.put(_News(number, response))
        except Exception as fault:  # noqa: BLE001 - it is raised where the answer is read
            error = as_task_error(fault)
        self._entry.model, self._entry.deployment = noted.model, noted.deployment
        await self._news.put(_News(number, error=error))

    def _end(self, number: int) -> None:
        _, place = self._running.pop(number)
        place.__exit__(None, None, None)

    async def _cancel(self) -> None:
        """Cancel what still runs, and wait until it has ended."""
        works = [work for work, _ in self._running.values()]
        for work in works:
            work.cancel()
        try:
            await asyncio.gather(*works, return_exceptions=True)
        finally:
            for number in tuple(self._running):
                self._end(number)

    def _usage(self) -> Usage:
        """What all tasks have taken so far."""
        prompt = sum(usage["prompt_tokens"] for usage in self._usages.values())
        completion = sum(usage["completion_tokens"] for usage in self._usages.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
