"""The handlers of the page's controls. Gradio keeps the conversations and passes them in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple

import gradio as gr

from schema.model_variant import ModelVariant
from serve_app.ui.answer import Answer, comparison
from serve_app.ui.client import ChatError, Server, label_of, variants_of
from serve_app.ui.config import ChatArgs
from serve_app.ui.conversation import Settings, Turn, request_for
from serve_app.ui.display import escaped, messages
from serve_app.ui.runs import Runs

UNCHANGED: Any = gr.skip()
NO_MESSAGE: dict[str, Any] = {"text": "", "files": []}


class View(NamedTuple):
    """Changes of the page by `Handlers.send`, `again` and `clear`, in the order of its outputs."""

    turns: Any = UNCHANGED
    chatbot: Any = UNCHANGED
    message: Any = UNCHANGED
    seed: Any = UNCHANGED
    stop: Any = UNCHANGED
    again: Any = UNCHANGED
    clear: Any = UNCHANGED


class Models(NamedTuple):
    """Changes of the page by `Handlers.list_models`."""

    variants: Any = UNCHANGED
    model: Any = UNCHANGED
    variant: Any = UNCHANGED
    notice: Any = UNCHANGED


def _idle(turns: list[Turn], **changes: Any) -> View:
    """The page while nothing runs."""
    comparable = bool(turns) and turns[-1].complete and turns[-1].answer.seed is not None
    return View(
        turns=turns,
        chatbot=messages(turns),
        stop=gr.Button(interactive=False),
        again=gr.Button(interactive=comparable),
        clear=gr.Button(interactive=True),
        **changes,
    )


def _busy(turns: list[Turn], **changes: Any) -> View:
    """The page when a run begins."""
    return View(
        turns=turns,
        stop=gr.Button(interactive=True),
        again=gr.Button(interactive=False),
        clear=gr.Button(interactive=False),
        **changes,
    )


class Handlers:
    """The handlers of all sessions. A session is a browser's tab."""

    def __init__(self, args: ChatArgs) -> None:
        self._args = args
        self._server = Server(args.server)
        self._runs = Runs()

    async def list_models(self, key: str, model: str | None) -> Models:
        """Ask the server what it serves; a model that was chosen before stays chosen."""
        try:
            served = await self._server.variants(key.strip())
        except ChatError as error:
            return Models(notice=gr.Markdown(f"**Error:** {escaped(str(error))}", visible=True))
        names = list(dict.fromkeys(variant.id for variant in served))
        chosen = model or (names[0] if names else None)
        return Models(
            variants=served,
            model=gr.Dropdown(choices=names, value=chosen),
            variant=self.list_variants(served, chosen),
            notice=gr.Markdown(visible=False),
        )

    def list_variants(self, served: Sequence[ModelVariant], model: str | None) -> Any:
        """The choice of a model's variants; the first is chosen."""
        labels = [label_of(variant) for variant in variants_of(served, model or "")]
        return gr.Dropdown(choices=labels, value=labels[0])

    async def send(
        self,
        turns: list[Turn],
        message: dict[str, Any],
        served: Sequence[ModelVariant],
        model: str | None,
        variant: str | None,
        system: str,
        temperature: float,
        top_p: float,
        top_k: str,
        max_tokens: str,
        new_seed: bool,
        seed: str,
        key: str,
        request: gr.Request,
    ) -> AsyncGenerator[View, None]:
        """Send a message and stream its answer. A message that fails goes back into the input."""
        session = str(request.session_hash)
        try:
            self._check(session, message, model)
            settings = Settings(
                variant=_chosen(served, model or "", variant),
                system=system,
                temperature=temperature,
                top_p=top_p,
                top_k=_whole(top_k, "Top k"),
                max_tokens=_whole(max_tokens, "Max tokens"),
                seed=None if new_seed else _whole(seed, "Seed"),
            )
        except ChatError as error:
            gr.Warning(str(error))
            yield View()
            return
        turn = Turn(message["text"], tuple(message["files"]), settings)
        turns = [*(turn for turn in turns if turn.answered), turn]
        asking = self._ask(turn.answer, turns, key)
        async with self._runs.running(session, asking) as run:
            yield _busy(turns, chatbot=messages(turns, growing=True), message=NO_MESSAGE)
            shown = 0
            async for _ in run.progress():
                if turn.answer.size > shown:
                    shown = turn.answer.size
                    yield View(chatbot=messages(turns, growing=True))
            turn.stopped, turn.error = run.stopped, run.error
        yield _idle(
            turns,
            message=UNCHANGED if turn.error is None else message,
            seed=UNCHANGED if turn.answer.seed is None else str(turn.answer.seed),
        )

    async def again(
        self, turns: list[Turn], key: str, request: gr.Request
    ) -> AsyncGenerator[View, None]:
        """Send the last turn's request again, with the seed that it had, and compare the bytes."""
        turn, answer = turns[-1], Answer()
        asking = self._ask(answer, turns, key, seed=turn.answer.seed)
        turn.notes.append("Running again ...")
        async with self._runs.running(str(request.session_hash), asking) as run:
            yield _busy(turns, chatbot=messages(turns))
            async for _ in run.progress():
                pass
            if run.stopped:
                turn.notes[-1] = "Running again was stopped: nothing was compared."
            elif run.error is not None:
                turn.notes[-1] = f"Running again failed: {run.error}"
            else:
                turn.notes[-1] = comparison(turn.answer, answer)
        yield _idle(turns)

    def stop(self, request: gr.Request) -> None:
        """Stop the run of this session; the handler that runs it shows that it was stopped."""
        self._runs.stop(str(request.session_hash))

    def clear(self) -> View:
        """Begin a new conversation."""
        return _idle([], message=NO_MESSAGE)

    async def _ask(
        self, answer: Answer, turns: list[Turn], key: str, seed: int | None = None
    ) -> None:
        request = await asyncio.to_thread(request_for, turns, seed)
        await self._server.fill(answer, request, key.strip())

    def _check(self, session: str, message: dict[str, Any], model: str | None) -> None:
        """Raises `ChatError` for a message that cannot be sent now, or not at all."""
        if self._runs.busy(session):
            raise ChatError("Wait for the end of the answer, or stop it first.")
        if not model:
            raise ChatError("Choose a model first.")
        if not (message["text"].strip() or message["files"]):
            raise ChatError("Write something, or attach an image.")
        if len(message["files"]) > self._args.max_pictures:
            raise ChatError(f"A message can have {self._args.max_pictures} images at most.")


def _chosen(served: Sequence[ModelVariant], model: str, label: str | None) -> ModelVariant:
    """The variant with this label. Raises `ChatError` if the model has no such variant."""
    variants = {label_of(variant): variant for variant in variants_of(served, model)}
    if label not in variants:
        raise ChatError(f"{model} has no variant {label!r}; choose one of {', '.join(variants)}.")
    return variants[label]


def _whole(text: str, name: str) -> int | None:
    """A whole number in a field; None if it is empty. The server checks its limits."""
    try:
        return int(text) if text.strip() else None
    except ValueError:
        raise ChatError(f"{name} must be a whole number, or empty.") from None
