"""One chat template of a model: what it reads, and conversations rendered with it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from jinja2 import meta
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template, render_jinja_template

from engine.requests.template.messages import conversation
from engine.requests.template.traits import TemplateTraits, find_traits
from engine.requests.template.unread import written_for
from engine.text.events import CallLayout
from schema.errors import TaskArgsInvalid
from schema.message import Message

# Arguments of `apply_chat_template` that a task may set by template_args; the engine sets the
# others. Names that are not arguments are variables of the template, which a task may set freely.
_SWITCHES = ("add_generation_prompt", "continue_final_message")
_ENGINES_OWN = {
    *inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters,
    "messages",
    "conversations",
} - {*_SWITCHES}

HINTS = ("enable_thinking", "reasoning_effort", "thinking")
"""Variables by which public templates steer reasoning. Clients that know many models send them to
all; where a template does not read them, they are accepted and change nothing."""


class ChatTemplate:
    """A template, with what it reads, which is found out when this is made.

    Attributes:
        source: its text.
        traits: what it reads of messages and tools.
        variables: the names of its own variables, which ``template_args`` may set.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str, *, blocks: bool) -> None:
        """``blocks`` says whether contents are lists of blocks."""
        self._tokenizer = tokenizer
        self.source = source
        self.variables = _variables(source) - _ENGINES_OWN - {*_SWITCHES}
        self._reads_prompt_switch = "add_generation_prompt" in _variables(source)
        self.traits: TemplateTraits = find_traits(
            lambda messages, tools: self._text(messages, tools, {"add_generation_prompt": True}),
            blocks=blocks,
        )

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[dict[str, Any]] | None,
        layout: CallLayout,
        arguments: dict[str, Any],
    ) -> str:
        """The text of a prompt.

        Args:
            messages: the conversation.
            tools: of the task.
            layout: how calls are written where the template does not write them.
            arguments: the task's ``template_args``.

        Raises:
            TaskArgsInvalid: the template refuses the messages, or does not read an argument.
        """
        self._check(arguments)
        arguments = {"add_generation_prompt": not arguments.get("continue_final_message")} | {
            name: value
            for name, value in arguments.items()
            if name in self.variables or name in _SWITCHES
        }
        reads_tools = bool(tools) and self.traits.tools
        history = self.traits.with_tools if reads_tools else self.traits.without_tools
        given = conversation(messages, history.form)
        given = written_for(self.traits, given, tools, layout)
        offered = None if tools is None or (tools and not reads_tools) else list(tools)
        try:
            return self._text(given, offered, arguments)
        except Exception as error:  # a template is a program of the model's authors
            raise TaskArgsInvalid(
                f"messages: the model's chat template refused them: {error}", param="messages"
            ) from error

    def _text(
        self,
        messages: list[dict[str, Any]],
        tools: Any,  # a list of objects, or None
        arguments: dict[str, Any],
    ) -> str:
        if any("content" in message and message["content"] is None for message in messages):
            # `apply_chat_template` would leave the key out.
            variables = {**self._tokenizer.special_tokens_map, **arguments}
            texts: Any = render_jinja_template(
                [messages], tools, chat_template=self.source, **variables
            )
            return str(texts[0][0])
        text = self._tokenizer.apply_chat_template(
            messages, tools=tools, chat_template=self.source, tokenize=False, **arguments
        )
        assert isinstance(text, str)
        return text

    def _check(self, arguments: dict[str, Any]) -> None:
        """Refuse arguments that the engine sets, or that would be ignored."""
        for name, value in arguments.items():
            param = f"template_args.{name}"
            if name in _ENGINES_OWN:
                problem = "is set by the engine and cannot be changed"
            elif name in _SWITCHES and not isinstance(value, bool):
                problem = "must be true or false"
            elif name == "add_generation_prompt" and not (value or self._reads_prompt_switch):
                problem = "is not read by this model's chat template; leave it out"
            elif name in (*self.variables, *_SWITCHES, *HINTS):
                continue
            else:
                known = ", ".join(sorted(self.variables)) or "no variables of its own"
                problem = f"is not read by this model's chat template, which reads {known}"
            raise TaskArgsInvalid(f"{param} {problem}", param=param)


def _variables(source: str) -> frozenset[str]:
    """The names that a template looks up in what it is given; none if it is no valid template."""
    try:
        environment = _compile_jinja_template(source).environment
        names = meta.find_undeclared_variables(environment.parse(source))
    except Exception:  # noqa: BLE001 - then each task is refused with the template's own error
        return frozenset()
    return frozenset(names - environment.globals.keys())
