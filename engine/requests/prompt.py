"""Messages to prompt tokens: the chat template, or the contents joined where there is none.

A prompt that is given as token ids is taken as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from engine.loading.families.traits import ImageAttention, rope_index
from engine.loading.loaded_model import LoadedModel
from engine.requests.template.chat_template import HINTS, ChatTemplate
from engine.text.detect import MessageFormats, detect
from engine.text.detokenizer import Detokenizer
from engine.text.tool_calls.hermes import HERMES
from engine.vision.image_places import ImagePlaces
from engine.vision.preprocessor import ImageInputs
from schema.errors import ContextLengthExceeded, TaskArgsInvalid
from schema.task import Message, Task

logger = logging.getLogger(__name__)

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
        spans_in_windows: whether they do so in layers with a window only.
        text_end: the last characters of its text, where a template may begin the reasoning.
        text: all of its text, where the task has it reported.
        text_ends: where each token's text ends in it; None where only the tokens' bytes tell.
    """

    token_ids: tuple[int, ...]
    images: ImageInputs = ()
    image_starts: tuple[int, ...] = ()
    bidirectional_spans: tuple[tuple[int, int], ...] = ()
    spans_in_windows: bool = False
    text_end: str = ""
    text: str = ""
    text_ends: tuple[int, ...] | None = None

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
    """Renders tasks for one model, on one thread at a time: tokenizers cannot be shared.

    Attributes:
        formats: what the model writes beside text, as its prompts ask for it.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        """Find out what the model's chat templates read, by rendering probes."""
        self._loaded = loaded
        self._tokenizer = loaded.tokenizer
        self._template = self._for_tools = None
        if loaded.chat_template is None:
            logger.warning("the model has no chat template: the contents of messages are joined")
        else:
            self._template = self._for_tools = self._chat_template(loaded.chat_template)
        if loaded.tool_template not in (None, loaded.chat_template):
            self._for_tools = self._chat_template(str(loaded.tool_template))
        self.formats = self._detect_formats()
        self._places = self._image_words()
        self._tells_images_apart = rope_index(loaded.model) is None
        embeddings = loaded.model and loaded.model.get_input_embeddings()
        self._num_embeddings: int | None = getattr(embeddings, "num_embeddings", None)
        # No token stands for more characters than the longest entry of the vocabulary.
        self._longest_token = max(map(len, self._tokenizer.get_vocab()), default=1)

    def card(self) -> dict[str, Any]:
        """What the model's prompts read, for its card."""
        if self._template is None or self._for_tools is None:
            return {"chat_template": False, "tools": None, "system": None, "template_args": []}
        special = self._tokenizer.special_tokens_map.keys()
        return {
            "chat_template": True,
            "tools": "template" if self._for_tools.traits.tools else "default",
            "system": "template" if self._template.traits.system else "user",
            "template_args": sorted(self._template.variables - special),
        }

    def render(self, task: Task, images: ImageInputs = ()) -> Prompt:
        """Prompt tokens of a task.

        Raises:
            TaskArgsInvalid: it is too long in any case, the template refuses it or does not read
                one of its ``template_args``, there is no template to read its tools, a message has
                another number of ``<image>`` tags than images, or two images stand side by side
                and the model cannot tell them apart.
        """
        if task.prompt_token_ids is not None:
            return self._given(task, task.prompt_token_ids)
        self._check_length(sum(len(message.text) for message in task.messages))
        by_template = self._template is not None and task.use_chat_template
        messages: Sequence[Message] = task.messages
        if self._places is not None:
            messages = self._places.placed(messages, by_template=by_template)
        if by_template:
            text = self._apply_template(task, messages)
            special_tokens = self._template_lacks_special_tokens(text)
        else:
            self._refuse_what_templates_read(task)
            text = "\n".join(message.text for message in messages)
            special_tokens = True
        self._check_length(len(text))
        with_ends = task.generation_config.prompt_logprobs is not None and self._tokenizer.is_fast
        ends: tuple[int, ...] | None = None
        if self._places is not None:
            text = self._framed(self._places.fill(text, self._placeholders(images)))
        if self._places is not None and self._places.has_words(text):
            token_ids = self._places.encode(text, add_special_tokens=special_tokens)
            text = self._places.without_marks(text)
        else:
            tokenized = self._tokenizer(
                text, add_special_tokens=special_tokens, return_offsets_mapping=with_ends
            )
            token_ids = tokenized["input_ids"]
            if with_ends:
                ends = tuple(end for _, end in tokenized["offset_mapping"])
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
            self._loaded.image_attention is ImageAttention.IMAGE_IN_WINDOWS,
            text[-_TEXT_END:],
            text if _reports_text(task) else "",
            ends,
        )

    def _framed(self, text: str) -> str:
        """What the processor of some families writes around every prompt."""
        begin = str(self._tokenizer.bos_token or self._tokenizer.eos_token)
        if self._loaded.begins_every_prompt and not text.startswith(begin):
            text = begin + text
        return text + self._loaded.prompt_end

    def _placeholders(self, images: ImageInputs) -> list[str]:
        """What stands for each image, with what the model's processor writes after the last one."""
        texts = [image.placeholder for image in images]
        if texts and self._loaded.begins_after_images:
            texts[-1] += str(self._tokenizer.bos_token)
        return texts

    def _chat_template(self, source: str) -> ChatTemplate:
        return ChatTemplate(self._tokenizer, source, blocks=self._loaded.takes_images)

    def _detect_formats(self) -> MessageFormats:
        template = self._for_tools
        if template is None:
            return detect(None, self._tokenizer)
        found = detect(template.source, self._tokenizer, reads_tools=template.traits.tools)
        # Tools that the template does not write are described, with the form of a call.
        return found if template.traits.tools else found.that_can_be_forced()

    def _image_words(self) -> ImagePlaces | None:
        loaded = self._loaded
        if loaded.image_token is None:
            return None
        config = getattr(loaded.model, "config", None)
        video = getattr(config, "video_token_id", None)
        ids = (loaded.image_token_id, video, *loaded.indicator_token_ids)
        others = [
            str(self._tokenizer.convert_ids_to_tokens(each)) for each in ids if each is not None
        ]
        return ImagePlaces(self._tokenizer, loaded.image_token, others, loaded.image_tag)

    def _given(self, task: Task, token_ids: Sequence[int]) -> Prompt:
        """A prompt that the task has as token ids."""
        self._refuse_what_templates_read(task)
        if len(token_ids) > self._loaded.context_length:
            raise ContextLengthExceeded(
                f"messages: {len(token_ids)} tokens are more than the context of "
                f"{self._loaded.context_length} tokens: shorten the messages",
                param="messages",
            )
        limit = self._num_embeddings or len(self._tokenizer)
        if max(token_ids) >= limit:
            place = next(place for place, token in enumerate(token_ids) if token >= limit)
            raise TaskArgsInvalid(
                f"prompt_token_ids.{place} is {token_ids[place]}; the ids of this model's tokens "
                f"are less than {limit}",
                param=f"prompt_token_ids.{place}",
            )
        of_images = {self._loaded.image_token_id, *self._loaded.indicator_token_ids}
        found = [place for place, token in enumerate(token_ids) if token in of_images]
        if found:
            place = found[0]
            raise TaskArgsInvalid(
                f"prompt_token_ids.{place} is {token_ids[place]}, which stands for an image: send "
                "messages with image blocks",
                param=f"prompt_token_ids.{place}",
            )
        end = Detokenizer(self._tokenizer, (), hidden=frozenset()).decode(
            list(token_ids[-_TEXT_END:])
        )
        text = ""
        if _reports_text(task):
            text = Detokenizer(self._tokenizer, ()).decode(list(token_ids))
        return Prompt(tuple(token_ids), text_end=end[-_TEXT_END:], text=text)

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

    def _refuse_what_templates_read(self, task: Task) -> None:
        none = "this model has none" if task.is_templated else "the task uses none"
        arguments = dict(task.template_args or {})
        if task.messages and arguments.get("continue_final_message") is True:
            del arguments["continue_final_message"]  # joined contents are continued in any case
        unread = [name for name in arguments if name not in HINTS]
        for name, value in (("tools", task.tools), ("template_args", unread)):
            if value:
                raise TaskArgsInvalid(
                    f"{name} is read by chat templates, and {none}: leave it out", param=name
                )
        for number, message in enumerate(task.messages):
            if message.tool_calls:
                param = f"messages.{number}.tool_calls"
                raise TaskArgsInvalid(
                    f"{param} is read by chat templates, and {none}: write the calls in the "
                    "content, or leave them out",
                    param=param,
                )

    def _apply_template(self, task: Task, messages: Sequence[Message]) -> str:
        tools: Any = task.tools
        arguments: Any = dict(task.template_args or {})
        if (effort := task.reasoning_effort) is not None:
            # A template that does not read these variables is not changed by them.
            arguments.setdefault("reasoning_effort", effort)
            arguments.setdefault("enable_thinking", effort != "none")
        if self._places is not None:
            tools = self._places.as_words(tools)
            arguments = {name: self._places.as_words(arguments[name]) for name in arguments}
        template = self._for_tools if tools else self._template
        assert template is not None
        layout = (self.formats.tools and self.formats.tools.layout) or HERMES.layout
        assert layout is not None
        return template.render(messages, tools, layout, arguments)

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


def _reports_text(task: Task) -> bool:
    """Whether the response depends on the prompt's text."""
    return task.echo or task.generation_config.prompt_logprobs is not None
