"""Where the images of a task stand in its prompt, and the same words in somebody's text.

Templates write a token for each image, and some authors write ``<image>`` in their texts. Both are
also words that a text may be about. They are words in messages without images, and a token is a
word wherever the template places the images. Then it is marked (by transformers' own means, those
of ``sanitize_control_tokens``), so that it neither takes the place of an image nor becomes the
token.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import encode_marked_chat, mark_control_tokens

from schema.errors import TaskArgsInvalid
from schema.task import ImageBlock, Message, TextBlock

_BEGIN, _END = mark_control_tokens("-", re.compile("-")).split("-")


class ImagePlaces:
    """The words of one model that stand for images."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_token: str,
        other_tokens: Collection[str] = (),
        tag: str | None = None,
    ) -> None:
        """Prepare for a model.

        Args:
            tokenizer: of the model.
            image_token: what its chat template writes for an image.
            other_tokens: further tokens that must not come from a text.
            tag: what authors of prompts write where an image belongs.
        """
        self._tokenizer = tokenizer
        self._image_token = image_token
        self._tag = tag
        longest_first = sorted({image_token, *other_tokens}, key=len, reverse=True)
        self._tokens = re.compile("|".join(map(re.escape, longest_first)))
        marked = f"{_BEGIN}(?:{self._tokens.pattern}){_END}"
        self._marked = re.compile(marked)
        self._marked_or_place = re.compile(f"({marked})|{re.escape(image_token)}")

    def placed(self, messages: Sequence[Message], *, by_template: bool) -> list[Message]:
        """The messages with their words marked, and with the image token where a text has a place.

        Args:
            messages: of a task.
            by_template: whether a chat template writes them; otherwise the texts alone do, and
                say where images stand.

        Raises:
            TaskArgsInvalid: a message with images has places in its text, but not as many.
        """
        own = [] if self._tag is None else [self._tag]
        if not by_template:
            own.append(self._image_token)
        places = re.compile("|".join(map(re.escape, own)) or "(?!)")
        return [
            self._message(message, number, places, by_template)
            for number, message in enumerate(messages)
        ]

    def as_words(self, value: Any) -> Any:
        """A text, or what has texts in it, with this model's tokens marked as words."""
        if isinstance(value, str):
            return self._tokens.sub(f"{_BEGIN}\\g<0>{_END}", value)
        if isinstance(value, dict):
            return {self.as_words(key): self.as_words(item) for key, item in value.items()}
        return [self.as_words(item) for item in value] if isinstance(value, list) else value

    def fill(self, text: str, placeholders: Sequence[str]) -> str:
        """A rendered text with each image's own placeholder in the place of the image token.

        Raises:
            TaskArgsInvalid: there are not as many places as images.
        """
        found = [m for m in self._marked_or_place.finditer(text) if m.group(1) is None]
        if len(found) != len(placeholders):
            raise TaskArgsInvalid(
                f"messages: the prompt has {len(found)} places for {len(placeholders)} images; "
                f"{self._image_token!r} says where an image stands",
                param="messages",
            )
        pieces, start = [], 0
        for place, placeholder in zip(found, placeholders, strict=True):
            pieces += [text[start : place.start()], placeholder]
            start = place.end()
        return "".join([*pieces, text[start:]])

    def has_words(self, text: str) -> bool:
        """Whether a text has marked words."""
        return self._marked.search(text) is not None

    def without_marks(self, text: str) -> str:
        """A text as it reads."""
        return self._marked.sub(lambda found: found.group()[len(_BEGIN) : -len(_END)], text)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """The tokens of a text, in which marked words are plain text.

        Raises:
            TaskArgsInvalid: it has such a word, and the tokenizer cannot spell it.
        """
        if not self.has_words(text):
            tokens: list[int] = self._tokenizer(text, add_special_tokens=add_special_tokens)[
                "input_ids"
            ]
            return tokens
        try:
            if re.search(f"[{_BEGIN}{_END}]", self._marked.sub("", text)):
                raise ValueError("beside the characters U+F0000 and U+F0001")
            tokens = encode_marked_chat(self._tokenizer, text)
        except ValueError as error:
            word = self.without_marks(self._marked.search(text).group())  # type: ignore[union-attr]
            raise TaskArgsInvalid(
                f"messages: the text {word!r} is reserved for image blocks, and this model cannot "
                f"have it as words here ({error}): leave it out",
                param="messages",
            ) from error
        return self._with_special_tokens(tokens) if add_special_tokens else tokens

    def _with_special_tokens(self, tokens: list[int]) -> list[int]:
        """What the tokenizer puts around any text, such as a begin token, around these."""
        plain: list[int] = self._tokenizer("a", add_special_tokens=False)["input_ids"]
        around: list[int] = self._tokenizer("a", add_special_tokens=True)["input_ids"]
        for start in range(len(around) - len(plain) + 1):
            if around[start : start + len(plain)] == plain:
                return [*around[:start], *tokens, *around[start + len(plain) :]]
        return tokens

    def _message(
        self, message: Message, number: int, places: re.Pattern[str], by_template: bool
    ) -> Message:
        changes: dict[str, Any] = {
            name: self.as_words(value)
            for name in ("name", "tool_call_id", "reasoning_content", "tool_calls")
            if (value := getattr(message, name)) is not None
        }
        content = message.content
        if isinstance(content, str):
            changes["content"] = self.as_words(content)
        elif content is not None:
            changes["content"] = self._content(content, number, places, by_template)
        return message.model_copy(update=changes)

    def _content(
        self,
        blocks: Sequence[TextBlock | ImageBlock],
        number: int,
        places: re.Pattern[str],
        by_template: bool,
    ) -> list[TextBlock | ImageBlock]:
        """The blocks of a message; without its image blocks if its texts have places for them."""
        images = sum(isinstance(block, ImageBlock) for block in blocks)
        texts = [block.text for block in blocks if isinstance(block, TextBlock)]
        found = sum(len(places.findall(text)) for text in texts) if images else 0
        if found != images and (found or not by_template):
            word = self._tag or self._image_token
            otherwise = ", or none to have them where their blocks stand" if by_template else ""
            raise TaskArgsInvalid(
                f"messages.{number}.content: the texts have {found} placeholders {word!r} for "
                f"{images} images: write one for each image of the message{otherwise}",
                param=f"messages.{number}.content",
            )
        if not found:
            return [
                block.model_copy(update={"text": self.as_words(block.text)})
                if isinstance(block, TextBlock)
                else block
                for block in blocks
            ]
        return [
            block.model_copy(update={"text": self._with_places(block.text, places)})
            for block in blocks
            if isinstance(block, TextBlock)
        ]

    def _with_places(self, text: str, places: re.Pattern[str]) -> str:
        return self._image_token.join(self.as_words(part) for part in places.split(text))
