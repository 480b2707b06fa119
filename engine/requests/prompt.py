"""Messages to prompt tokens: the chat template, or the contents joined where there is none."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from pydantic_core import PydanticCustomError
from transformers import PreTrainedTokenizerBase

from engine.loading.families.traits import rope_index
from engine.loading.loaded_model import LoadedModel
from engine.vision.image_tags import fill_image_tags
from engine.vision.preprocessor import ImageInputs
from schema.errors import ContextLengthExceeded, TaskArgsInvalid
from schema.json_values import check_json, parse_json
from schema.task import ImageBlock, Message, Task

# Arguments of `apply_chat_template` that a task may set by template_args; the engine sets the
# others. Names that are not arguments are variables of the template, which a task may set freely.
_ALLOWED_TEMPLATE_ARGUMENTS = ("add_generation_prompt", "continue_final_message")

_TEXT_END = 64  # characters; a marker of reasoning and white space after it


@dataclass(frozen=True)
class Prompt:
    """A rendered task.

    Attributes:
        token_ids: its tokens, with image placeholders expanded.
        images: its images.
        image_starts: position of each image's first token.
        bidirectional_spans: runs (start, stop) of tokens that attend to each other and are not
            split between chunks.
        text_end: the last characters of its text, where a template may begin the reasoning.
    """

    token_ids: tuple[int, ...]
    images: ImageInputs = ()
    image_starts: tuple[int, ...] = ()
    bidirectional_spans: tuple[tuple[int, int], ...] = ()
    text_end: str = ""

    def chunk_stop(self, start: int, size: int) -> int:
        """The end of the chunk that begins at ``start``; a function of the prompt alone.

        Chunks have ``size`` tokens, and the last one the rest. Where such a cut would split a run
        of `bidirectional_spans`, the chunk ends before the run, or is the run.
        """
        stop = min(start + size, len(self.token_ids))
        for first, end in self.bidirectional_spans:
            if first < stop < end:
                return first if first > start else end
        return stop


class PromptRenderer:
    """Renders tasks for one model, on one thread at a time: tokenizers cannot be shared."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._tokenizer = loaded.tokenizer
        parameters = inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters
        self._reserved = {*parameters, "messages", "conversations"} - {*_ALLOWED_TEMPLATE_ARGUMENTS}
        self._tells_images_apart = rope_index(loaded.model) is None
        embeddings = loaded.model and loaded.model.get_input_embeddings()
        self._num_embeddings: int | None = getattr(embeddings, "num_embeddings", None)
        # No token stands for more characters than the longest entry of the vocabulary.
        self._longest_token = max(map(len, self._tokenizer.get_vocab()), default=1)

    def render(self, task: Task, images: ImageInputs = ()) -> Prompt:
        """Prompt tokens of a task.

        Raises:
            TaskArgsInvalid: it is too long in any case, the template refuses it, the text holds the
                model's own image placeholder, the number of ``<image>`` tags is not that of the
                images, or two images stand side by side and the model cannot tell them apart.
        """
        self._check_length(sum(len(message.text) for message in task.messages))
        loaded = self._loaded
        messages: Sequence[Message] = task.messages
        if loaded.image_tag is not None and loaded.image_token is not None:
            messages = fill_image_tags(messages, loaded.image_tag, loaded.image_token)
        if loaded.chat_template is None or not task.use_chat_template:
            self._refuse_template_settings(task)
            text = "\n".join(message.text for message in messages)
            special_tokens = True
        else:
            text = self._apply_template(task, messages)
            special_tokens = self._template_lacks_special_tokens(text)
        self._check_length(len(text))
        if loaded.image_token is not None:
            text = self._expand_images(text, loaded.image_token, images)
        token_ids = self._tokenizer(text, add_special_tokens=special_tokens)["input_ids"]
        if not token_ids:
            raise TaskArgsInvalid("messages: the prompt is empty", param="messages")
        self._refuse_unknown(token_ids)
        places = self._image_places(token_ids, images)
        starts = self._image_starts(places, images)
        self._refuse_neighbours(starts, images)
        return Prompt(
            tuple(token_ids),
            images,
            starts,
            self._whole(places),
            text[-_TEXT_END:],
        )

    def _template_lacks_special_tokens(self, text: str) -> bool:
        """Whether the tokenizer adds its special tokens to a template's text.

        For text models the template writes them. Those of vision-language models may rely on the
        processor, which adds them where the text does not begin with one (as transformers'
        ``ProcessorMixin.apply_chat_template`` does).
        """
        if not self._loaded.takes_images:
            return False
        begin = self._tokenizer.bos_token
        return not (begin and text.startswith(str(begin)))

    def _check_length(self, characters: int) -> None:
        """Refuse what cannot fit before it is tokenized, which takes up to a second a megabyte."""
        at_least = characters // self._longest_token
        if at_least >= self._loaded.context_length:
            raise ContextLengthExceeded(
                f"messages: {characters} characters are at least {at_least} tokens, and this "
                f"model's maximum context length is {self._loaded.context_length} tokens: shorten "
                "the messages",
                param="messages",
            )

    def _refuse_unknown(self, token_ids: list[int]) -> None:
        """Some tokenizers have tokens that their model lacks; on a GPU these end the process."""
        if self._num_embeddings is not None and max(token_ids) >= self._num_embeddings:
            token = self._tokenizer.convert_ids_to_tokens(max(token_ids))
            raise TaskArgsInvalid(
                f"messages: the text holds {token!r}, a token that this model does not know",
                param="messages",
            )

    def _refuse_template_settings(self, task: Task) -> None:
        for name in ("tools", "template_args"):
            if getattr(task, name):
                none = "this model has none" if task.use_chat_template else "the task uses none"
                raise TaskArgsInvalid(
                    f"{name} is read by chat templates, and {none}: leave it out", param=name
                )

    def _apply_template(self, task: Task, messages: Sequence[Message]) -> str:
        arguments = dict(task.template_args or {})
        if clash := sorted(self._reserved & arguments.keys()):
            raise TaskArgsInvalid(
                f"template_args.{clash[0]} is set by the engine and cannot be changed",
                param=f"template_args.{clash[0]}",
            )
        for name in _ALLOWED_TEMPLATE_ARGUMENTS:
            if not isinstance(arguments.get(name, False), bool):
                raise TaskArgsInvalid(
                    f"template_args.{name} must be true or false", param=f"template_args.{name}"
                )
        if (effort := task.reasoning_effort) is not None:
            # A template that does not read these variables is not changed by them.
            arguments.setdefault("reasoning_effort", effort)
            arguments.setdefault("enable_thinking", effort != "none")
        arguments.setdefault("add_generation_prompt", not arguments.get("continue_final_message"))
        conversation = [_template_message(m, self._loaded.takes_images) for m in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                conversation,
                tools=list(task.tools) if task.tools is not None else None,
                chat_template=(task.tools and self._loaded.tool_template)
                or self._loaded.chat_template,
                tokenize=False,
                **arguments,
            )
        except Exception as error:  # a template is a program of the model's authors
            raise TaskArgsInvalid(
                f"messages: the model's chat template refused them: {error}", param="messages"
            ) from error
        assert isinstance(text, str)
        return text

    def _image_places(self, token_ids: Sequence[int], images: ImageInputs) -> list[int]:
        """The positions of the image tokens, as many as the images have."""
        token_id = self._loaded.image_token_id
        if token_id is None:
            return []
        places = [i for i, t in enumerate(token_ids) if t == token_id]
        if len(places) != sum(image.num_tokens for image in images):
            token = self._tokenizer.convert_ids_to_tokens(token_id)
            raise TaskArgsInvalid(
                f"messages: the text {token!r} is reserved for image blocks", param="messages"
            )
        return places

    @staticmethod
    def _image_starts(places: Sequence[int], images: ImageInputs) -> tuple[int, ...]:
        firsts = accumulate((image.num_tokens for image in images), initial=0)
        return tuple(places[first] for first, _ in zip(firsts, images, strict=False))

    def _refuse_neighbours(self, starts: Sequence[int], images: ImageInputs) -> None:
        """Refuse two images side by side, which texts with image tags can have."""
        ends = [start + image.num_tokens for start, image in zip(starts, images, strict=True)]
        if self._tells_images_apart or set(starts).isdisjoint(ends):
            return
        raise TaskArgsInvalid(
            "messages: two images have nothing between them, and this model cannot tell them "
            f"apart: write a text between their {self._loaded.image_token!r}, or have the chat "
            "template place them",
            param="messages",
        )

    def _whole(self, places: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """Runs of image tokens, for a model whose image tokens attend to each other."""
        if not self._loaded.whole_image_tokens or not places:
            return ()
        ends = [a + 1 for a, b in pairwise(places) if b != a + 1]
        starts = [b for a, b in pairwise(places) if b != a + 1]
        return tuple(zip([places[0], *starts], [*ends, places[-1] + 1], strict=True))

    def _expand_images(self, text: str, image_token: str, images: ImageInputs) -> str:
        parts = text.split(image_token)
        if len(parts) != len(images) + 1:
            raise TaskArgsInvalid(
                f"messages: the prompt has {len(parts) - 1} image placeholders for "
                f"{len(images)} images; the text {image_token!r} is reserved for image "
                "blocks",
                param="messages",
            )
        pieces = [parts[0]]
        for image, part in zip(images, parts[1:], strict=True):
            pieces += [image.placeholder, part]
        return "".join(pieces)


def _template_message(message: Message, takes_images: bool) -> dict[str, Any]:
    """A message as chat templates read it: blocks for vision models, a string for text models."""
    rendered: dict[str, Any] = {"role": message.role}
    if takes_images and message.content and not isinstance(message.content, str):
        rendered["content"] = [
            {"type": "image"} if isinstance(b, ImageBlock) else {"type": "text", "text": b.text}
            for b in message.content
        ]
    elif takes_images:
        rendered["content"] = [{"type": "text", "text": message.content or ""}]
    else:
        rendered["content"] = message.text
    if message.name is not None:
        rendered["name"] = message.name
    if message.reasoning_content is not None:
        rendered["reasoning_content"] = message.reasoning_content
    if message.tool_call_id is not None:
        rendered["tool_call_id"] = message.tool_call_id
    if message.tool_calls is not None:
        rendered["tool_calls"] = [_template_tool_call(call) for call in message.tool_calls]
    return rendered


def _template_tool_call(call: dict[str, Any]) -> dict[str, Any]:
    """OpenAI sends arguments as a JSON string; templates expect the object."""
    function = call.get("function")
    if isinstance(function, dict):
        return {**call, "function": _with_object(function)}
    return _with_object(call)


def _with_object(function: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(function.get("arguments"), str):
        return function
    try:
        arguments = parse_json(function["arguments"])
        if not isinstance(arguments, dict):
            return function
        return {**function, "arguments": check_json(arguments)}
    except (TaskArgsInvalid, PydanticCustomError):
        return function  # not a JSON object: the template gets the string
