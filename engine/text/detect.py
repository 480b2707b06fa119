"""Which formats a model writes, found in its chat template and its vocabulary."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from engine.text.events import ToolFormat
from engine.text.reasoning import MISTRAL_THINK, THINK, ReasoningFormat
from engine.text.tool_calls.hermes import HERMES, INTERNLM
from engine.text.tool_calls.llama import LLAMA
from engine.text.tool_calls.mistral import MISTRAL, MISTRAL_NAMED
from engine.text.tool_calls.qwen_coder import QWEN_CODER

if TYPE_CHECKING:  # the ingress reads messages, and cannot wait seconds for the library
    from transformers import PreTrainedTokenizerBase

# Words in a template that show which format it asks for, in the order in which they are tried. Some
# templates match more than one: a model made from Llama keeps Llama's tokens, and Qwen3-Coder's
# format begins like that of Hermes.
_TEMPLATES: tuple[tuple[tuple[str, ...], ToolFormat | None], ...] = (
    (("<tool_call>", "<arg_key>"), None),  # GLM's own
    (("<function=", "<parameter="), QWEN_CODER),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_NAMED),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<tool_call>",), HERMES),
    (("<|plugin|>",), INTERNLM),
    (("<|python_tag|>",), LLAMA),
    (('"parameters": dictionary of argument name',), LLAMA),
)
_VOCABULARIES: tuple[tuple[tuple[str, ...], ToolFormat | None], ...] = (
    (("<tool_call>", "<arg_key>"), None),
    (("[TOOL_CALLS]", "[ARGS]"), MISTRAL_NAMED),
    (("[TOOL_CALLS]",), MISTRAL),
    (("<tool_call>",), HERMES),
    (("<|action_start|>", "<|plugin|>"), INTERNLM),
    (("<|python_tag|>",), LLAMA),
)


@dataclass(frozen=True)
class MessageFormats:
    """What a model writes beside text; None where no format is known.

    Attributes:
        tools: how it calls tools.
        reasoning: how it marks its reasoning.
        special: the special tokens of its vocabulary, by their text; plain text has none of them.
        added: all tokens that were added to its vocabulary, by their text. The tokenizer always
            reads that text as the one token.
    """

    tools: ToolFormat | None
    reasoning: ReasoningFormat | None
    special: dict[str, int]
    added: dict[str, int] = field(default_factory=dict)

    def that_can_be_forced(self) -> MessageFormats:
        """The same, with Hermes' calls where the layout of the model's own is not known."""
        return self if self.tools and self.tools.layout else replace(self, tools=HERMES)

    def hidden_tokens(self, *, with_tools: bool) -> frozenset[int] | None:
        """The special tokens that are not part of a message's text; its markers are part of it.

        None if that is so for all special tokens.
        """
        markers = set(self.reasoning[1:]) if self.reasoning else set()
        if self.tools and with_tools:
            markers.update(self.tools.markers)
        if markers.isdisjoint(self.special):
            return None
        return frozenset(id for text, id in self.special.items() if text not in markers)


def detect(
    chat_template: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    reads_tools: bool | None = None,
) -> MessageFormats:
    """The formats of a model.

    For calls the template decides. Only if it does not read tools, the vocabulary decides: the
    model knows a format, and its prompts have to explain the tools in some other way.

    Args:
        chat_template: of the model.
        tokenizer: of the model.
        reads_tools: whether the template does; None to take one for such that speaks of tools.
    """
    template = chat_template or ""
    if reads_tools is None:
        reads_tools = "tool" in template
    added = tokenizer.get_added_vocab()
    tools = _first(_TEMPLATES, template) if reads_tools else _first(_VOCABULARIES, added)
    reasoning = None
    for known in (MISTRAL_THINK, THINK):
        if known.end in template or known.end in added:
            reasoning = known
            break
    return MessageFormats(tools, reasoning, _special_tokens(tokenizer), added)


def _first(
    table: tuple[tuple[tuple[str, ...], ToolFormat | None], ...], found: str | dict[str, int]
) -> ToolFormat | None:
    return next((form for words, form in table if all(word in found for word in words)), None)


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """What ``decode(..., skip_special_tokens=True)`` leaves out."""
    if tokenizer.is_fast:
        tokens = tokenizer.added_tokens_decoder
        return {str(token): id for id, token in tokens.items() if token.special}
    return dict(zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True))
