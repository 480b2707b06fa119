"""Messages from an engine, of models that write what their families write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from engine import Engine, EngineConfig
from schema.answers.response import TaskResponse, joined
from schema.task import Task
from tests.engine.models.scripted_model import save_scripted_model

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris </tool_call>"}}\n</tool_call>'
PLUGIN = '<|action_start|><|plugin|>\n{"name": "weather", "parameters": {}}<|action_end|>'

# As Qwen3's and DeepSeek's do: they write tools and calls, and begin the reasoning if asked to.
QWEN_TEMPLATE = (
    "{%- if tools %}{{ tools[0].function.name }}: write <tool_call>. {% endif -%}"
    "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content }}{%- endfor -%}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif -%}"
    "{%- if think is defined %}<think>\n{% endif -%}"
)
# As some have it: another template for tasks with tools.
PLAIN_TEMPLATE = "{%- for m in messages -%}<|{{ m.role }}|>{{ m.content }}{%- endfor -%}"
PLUGIN_TEMPLATE = "<|plugin|>{{ tools[0].function.name }}" + PLAIN_TEMPLATE

Ask = Callable[..., tuple[TaskResponse, list[Any]]]


def _asker(engine: Engine) -> Ask:
    """Asks with a prompt of so many tokens; gives the response and the deltas of its stream."""
    renderer = engine._loop.assembly.renderer

    def ask(length: int, **fields: Any) -> tuple[TaskResponse, list[Any]]:
        def task(text: str) -> Task:
            message = {"role": "user", "content": text}
            return Task.from_fields(**{"model": "m", "messages": [message]} | fields)

        padding = length - len(renderer.render(task("")).token_ids)
        deltas: list[Any] = []
        response = engine.run_blocking(
            task("x" * padding),
            lambda chunk: deltas.extend(choice["delta"] for choice in chunk["choices"]),
        )
        return response, deltas

    return ask


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    directory = tmp_path_factory.mktemp("qwen")
    scripts = {
        100: f"<think>\nHm.\n</think>\n\nI look.\n{CALL}",
        340: f"{CALL}\n{CALL}",
        260: "Hm.\n</think>\n\nIt rains. STOP",
        320: "<think>\nHm.",
    }
    markers = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    save_scripted_model(directory, scripts, template=QWEN_TEMPLATE, plain=markers)
    engine = Engine(EngineConfig(model=str(directory), dtype="float32", threads=1))
    yield _asker(engine)
    engine.close()


@pytest.fixture(scope="module")
def internlm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ask]:
    directory = tmp_path_factory.mktemp("internlm")
    scripts = {100: f"I <img>look.{PLUGIN}"}
    markers = ("<|action_start|>", "<|action_end|>", "<|plugin|>", "<|interpreter|>")
    templates = {"default": PLAIN_TEMPLATE, "tool_use": PLUGIN_TEMPLATE}
    save_scripted_model(directory, scripts, template=templates, special=markers)
    engine = Engine(EngineConfig(model=str(directory), dtype="float32", threads=1))
    assert (engine.card()["tool_format"], engine.card()["reasoning_format"]) == ("internlm", None)
    yield _asker(engine)
    engine.close()


def _choice(response: TaskResponse) -> tuple[Any, str]:
    return response["choices"][0]["message"], response["choices"][0]["finish_reason"]


@pytest.mark.parametrize(
    "settings", [{}, {"num_beams": 2}, {"num_beams": 2, "stop_strings": ["never"]}]
)
def test_reasoning_content_and_a_call(qwen: Ask, settings: dict[str, Any]) -> None:
    asked: dict[str, Any] = {"tools": [TOOL], "generation_config": settings}
    response, deltas = qwen(100, answer_format="message", **asked)
    message, reason = _choice(response)
    [call] = message.pop("tool_calls")
    assert message == {
        "role": "assistant",
        "content": "I look.",
        "reasoning_content": "Hm.",
    }
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Paris </tool_call>"}'}
    assert (len(call["id"]), call["id"].isalnum()) == (9, True)
    assert reason == "tool_calls"
    assert joined(deltas) == response["choices"][0]["message"] | {"tool_calls": [call]}

    text, _ = qwen(100, **asked)
    expected = f"<think>\nHm.\n</think>\n\nI look.\n{CALL}"
    assert _choice(text) == ({"role": "assistant", "content": expected}, "stop")
    assert text["usage"] == response["usage"]


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("stop", ["</tool_call>", "{", "<", "Hm", "Paris", "\n", "think"])
def test_what_the_client_cannot_see_does_not_stop_an_answer(
    qwen: Ask, stop: str, beams: int
) -> None:
    asked: dict[str, Any] = {"tools": [TOOL], "answer_format": "message"}
    response, deltas = qwen(100, **asked, generation_config={"num_beams": beams})
    settings = {"num_beams": beams, "stop_strings": [stop]}
    stopped, pieces = qwen(100, **asked, generation_config=settings)
    assert stopped == response
    assert joined(pieces) == joined(deltas)


@pytest.mark.parametrize("beams", [1, 2])
def test_a_stop_string_in_the_content_ends_generation(qwen: Ask, beams: int) -> None:
    """Not at the "l" of its reasoning: the answer has the tokens up to the end of "I lo"."""
    asked: dict[str, Any] = {"tools": [TOOL], "answer_format": "message"}
    settings = {"num_beams": beams, "stop_strings": ["lo"]}
    response, _ = qwen(100, **asked, generation_config=settings)
    message = {"role": "assistant", "content": "I ", "reasoning_content": "Hm."}
    assert _choice(response) == (message, "stop")
    tokens = 2 + len("\nHm.\n\n\nI lo")  # two markers are tokens, all else is bytes
    assert response["usage"]["completion_tokens"] == tokens


def test_one_call_at_most(qwen: Ask) -> None:
    for parallel, number in ((True, 2), (False, 1)):
        asked: dict[str, Any] = {"tools": [TOOL], "parallel_tool_calls": parallel}
        response, deltas = qwen(340, answer_format="message", **asked)
        message, reason = _choice(response)
        assert (message["content"], len(message["tool_calls"])) == ("", number)
        assert reason == "tool_calls"
        assert joined(deltas) == message


def test_ids_are_those_of_the_task_and_the_place(qwen: Ask) -> None:
    def ids(**fields: Any) -> list[str]:
        settings = {"generation_config": {"num_beams": 2, "num_return_sequences": 2}}
        choices = qwen(100, answer_format="message", tools=[TOOL], **settings | fields)[0]
        return [
            call["id"]
            for choice in choices["choices"]
            for call in choice["message"].get("tool_calls", [])
        ]

    first = ids()
    assert first
    assert ids() == first
    assert set(ids(seed=1)).isdisjoint(first)


def test_without_tools_calls_are_content(qwen: Ask) -> None:
    message, reason = _choice(qwen(100, answer_format="message")[0])
    assert (message["content"], reason) == (f"I look.\n{CALL}", "stop")


def test_reasoning_that_the_prompt_has_begun(qwen: Ask) -> None:
    asked: dict[str, Any] = {"generation_config": {"stop_strings": ["STOP", "P."]}}
    opened: dict[str, Any] = {"template_args": {"think": True}, **asked}
    response, deltas = qwen(260, answer_format="message", **opened)
    message = {"role": "assistant", "content": "It rains. ", "reasoning_content": "Hm."}
    assert _choice(response) == (message, "stop")
    assert joined(deltas) == message
    # Text keeps the stop string; and only the prompt makes the difference.
    text = "Hm.\n</think>\n\nIt rains. "
    assert _choice(qwen(260, **opened)[0])[0]["content"] == f"{text}STOP"
    assert _choice(qwen(260, answer_format="message", **asked)[0])[0]["content"] == text


def test_reasoning_goes_on_in_a_message_that_is_continued(qwen: Ask) -> None:
    # With <|assistant|>, <think> and a line break 260 tokens.
    message = {"role": "assistant", "content": "<think>\n" + "x" * 245}
    fields = {"messages": [message], "template_args": {"continue_final_message": True}}
    response, _ = qwen(0, answer_format="message", **fields)
    assert _choice(response)[0] == {
        "role": "assistant",
        "content": "It rains. STOP",
        "reasoning_content": "Hm.",
    }


def test_an_answer_that_is_cut_in_its_reasoning(qwen: Ask) -> None:
    asked: dict[str, Any] = {"generation_config": {"max_new_tokens": 4}}
    message, reason = _choice(qwen(320, answer_format="message", **asked)[0])
    assert message == {"role": "assistant", "content": "", "reasoning_content": "Hm"}
    assert reason == "length"


def test_markers_that_are_special_tokens(internlm: Ask) -> None:
    response, deltas = internlm(100, answer_format="message", tools=[TOOL])
    message, reason = _choice(response)
    assert message["content"] == "I look."  # <img> is special, and no marker
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": "{}"}
    assert reason == "tool_calls"
    assert joined(deltas) == message

    dropped = 'I look.\n{"name": "weather", "parameters": {}}'
    for fields in ({"tools": [TOOL]}, {"answer_format": "message"}, {}):
        answer, reason = _choice(internlm(100, **fields)[0])
        assert answer == {"role": "assistant", "content": dropped}
        assert reason == "stop"


@pytest.fixture(scope="module")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    directory = tmp_path_factory.mktemp("mistral")
    scripts = {100: "[THINK]Hm.[/THINK]It rains."}
    markers = ("[THINK]", "[/THINK]")
    save_scripted_model(directory, scripts, template=PLAIN_TEMPLATE, special=markers)
    engine = Engine(EngineConfig(model=str(directory), dtype="float32", threads=1))
    yield engine
    engine.close()


def test_the_message_after_a_prompt_of_token_ids(mistral: Engine) -> None:
    """A client that renders the template itself gets the same message as one that does not."""
    message = {"role": "assistant", "content": "It rains.", "reasoning_content": "Hm."}
    asked: dict[str, Any] = {"model": "m", "prompt_token_ids": [60] * 100}
    response = mistral.run_blocking(Task.from_fields(**asked, answer_format="message"))
    assert _choice(response) == (message, "stop")
    templated, _ = _asker(mistral)(100, answer_format="message")
    assert _choice(templated) == (message, "stop")
    text = mistral.run_blocking(Task.from_fields(**asked))
    assert _choice(text)[0]["content"] == "Hm.It rains."
