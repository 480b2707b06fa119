"""Which formats are found in templates and vocabularies, as public models have them."""

from __future__ import annotations

from typing import Any

import pytest

from engine.text.detect import detect
from tests.engine.models.tiny_models import byte_tokenizer

THINK = ("<think>", "</think>")
CALL = ("<tool_call>", "</tool_call>")

# Model, what its template says, its added tokens, the names of its formats.
MODELS: list[tuple[str, str | None, tuple[str, ...], tuple[str | None, str | None]]] = [
    ("Qwen2.5", 'tools <tool_call>\n{"name":', CALL, ("hermes", None)),
    ("Qwen3", "tools <tool_call> <think>\n\n</think>", (*CALL, *THINK), ("hermes", "think")),
    ("Qwen3-Coder", "tools <tool_call>\n<function=a>\n<parameter=b>", CALL, ("qwen_coder", None)),
    ("Qwen2.5-VL", "{% for message in messages %}", CALL, ("hermes", None)),
    ("Hermes-3", "tools <tool_call>", (*CALL, "<|python_tag|>"), ("hermes", None)),
    ("Llama-3.1", "tools <|python_tag|>", ("<|python_tag|>",), ("llama", None)),
    (
        "Llama-3.2",
        '{"name": function name, "parameters": dictionary of argument name and its value} tools',
        ("<|python_tag|>",),
        ("llama", None),
    ),
    ("Mistral-7B-v0.3", "tools [TOOL_CALLS] [", ("[TOOL_CALLS]",), ("mistral", None)),
    ("Devstral", "tools [TOOL_CALLS]f[ARGS]", ("[TOOL_CALLS]", "[ARGS]"), ("mistral", None)),
    (
        "Magistral",
        "tools [TOOL_CALLS]f[ARGS] [THINK]",
        ("[TOOL_CALLS]", "[ARGS]", "[THINK]", "[/THINK]"),
        ("mistral", "mistral"),
    ),
    (
        "InternLM2.5",
        "{% for message in messages %}",
        ("<|action_start|>", "<|action_end|>", "<|plugin|>"),
        ("internlm", None),
    ),
    (
        "DeepSeek-R1-Distill-Llama",
        "<tools><\uff5ctool\u2581calls\u2581begin\uff5c></think><think>\n",
        ("<|python_tag|>", *THINK),
        (None, "think"),
    ),
    ("GLM-4.5", "tools <tool_call>f\n<arg_key></think>", (*CALL, *THINK), (None, "think")),
    ("gpt2", None, (), (None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("model", "template", "added", "names"), MODELS)
def test_formats_of_models(
    model: str,
    template: str | None,
    added: tuple[str, ...],
    names: tuple[str | None, str | None],
) -> None:
    tokenizer: Any = byte_tokenizer()
    tokenizer.add_tokens(list(added))
    formats = detect(template, tokenizer)
    assert (
        formats.tools and formats.tools.name,
        formats.reasoning and formats.reasoning.name,
    ) == names


def test_only_markers_of_special_tokens_are_shown() -> None:
    tokenizer: Any = byte_tokenizer()
    tokenizer.add_tokens(["[TOOL_CALLS]", "[ARGS]", "[INST]"], special_tokens=True)
    tokenizer.add_tokens(["[CALL_ID]"])
    formats = detect("tools [TOOL_CALLS][ARGS]", tokenizer)
    hidden = formats.hidden_tokens(with_tools=True)
    assert hidden is not None
    texts = set(tokenizer.convert_ids_to_tokens(sorted(hidden)))
    assert texts == set(tokenizer.all_special_tokens) - {"[TOOL_CALLS]", "[ARGS]"} | {"[INST]"}
    assert formats.hidden_tokens(with_tools=False) is None
