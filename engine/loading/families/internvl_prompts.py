"""How the original InternVL repositories write conversations: their templates of ``chat``.

Formats: ``conversation.py`` of github.com/OpenGVLab/InternVL.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

# "I am Shusheng Wanxiang, in English InternVL, a multimodal large language model developed by
# Shanghai AI Laboratory, Tsinghua University and several partners." Trained with this sentence.
_SENTENCE = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"  # noqa: RUF001
    "多模态大语言模型。"
)
_GPT_OSS_SYSTEM = (
    "You are InternVL, a large language model trained by Shanghai AI Laboratory.\n"
    "Knowledge cutoff: 2024-06\nCurrent date: 2025-08-06\n\nReasoning: low\n\n"
    "# Valid channels: final. Channel must be included for every message."
)

# A line break follows an image, as `chat` writes it.
_TEMPLATE = (
    "{%- if tools %}{{ raise_exception('this model has no format for tools') }}{% endif -%}"
    "{{ begin }}"
    "{%- if system and messages and messages[0].role != 'system' -%}"
    "{{ turn ~ 'system' ~ after_role ~ system ~ turn_end }}{%- endif -%}"
    "{%- for message in messages -%}"
    "{%- if message.role not in ('system', 'user', 'assistant') or message.tool_calls -%}"
    "{{ raise_exception('this model has no format for tools: ' ~ message.role) }}{%- endif -%}"
    "{{ turn ~ message.role ~ (answer if message.role == 'assistant' else after_role) }}"
    "{%- if message.content is string -%}{{ message.content }}{%- else -%}"
    "{%- for block in message.content or [] -%}"
    "{%- if block.type == 'image' -%}{{ '<IMG_CONTEXT>\n' }}"
    "{%- else -%}{{ block.text }}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}"
    "{{ turn_end }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ turn ~ 'assistant' ~ opening }}{%- endif -%}"
)


@dataclass(frozen=True)
class Conversation:
    """A template of ``chat``.

    Attributes:
        turn: before the role of a message.
        after_role: before its content.
        answer: the same, of an earlier answer.
        opening: of the answer that is to be written.
        turn_end: after the content.
        end: the token with which an answer ends.
        system_message: where the task and the configuration have none.
    """

    turn: str
    after_role: str
    answer: str
    opening: str
    turn_end: str
    end: str
    system_message: str

    def chat_template(self, begin: str, system: str) -> str:
        """As a chat template of transformers.

        Args:
            begin: what the tokenizer writes before a text, such as InternLM's ``<s>``.
            system: a system message for conversations without one; "" for none.
        """
        values = {
            "begin": begin,
            "system": system,
            "turn": self.turn,
            "after_role": self.after_role,
            "answer": self.answer,
            "opening": self.opening,
            "turn_end": self.turn_end,
        }
        # JSON's strings are strings of a template, too.
        return (
            "".join(f"{{%- set {k} = {json.dumps(v)} -%}}" for k, v in values.items()) + _TEMPLATE
        )


CONVERSATIONS: dict[str, Conversation] = {
    "internvl2_5": Conversation(
        turn="<|im_start|>",
        after_role="\n",
        answer="\n",
        opening="\n",
        turn_end="<|im_end|>\n",
        end="<|im_end|>",
        system_message=_SENTENCE,
    ),
    # The model writes its channel; earlier answers come without it, and all are final.
    "internvl3_5_gpt_oss": Conversation(
        turn="<|start|>",
        after_role="<|message|>",
        answer="<|channel|>final<|message|>",
        opening="",
        turn_end="<|end|>",
        end="<|return|>",
        system_message=_GPT_OSS_SYSTEM,
    ),
}
