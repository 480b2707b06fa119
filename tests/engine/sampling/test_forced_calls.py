"""Forced calls in every format, and grammars that begin after the reasoning."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from tokenizers import AddedToken

from engine import Engine, EngineConfig
from engine.sampling.grammar import Grammar, GrammarCompiler
from engine.sampling.task_grammar import MAX_CALLS, task_grammar
from engine.text.detect import MessageFormats, detect
from engine.text.events import ToolFormat
from engine.text.message import MessageParser
from engine.text.reasoning import MISTRAL_THINK, THINK, ReasoningFormat
from engine.text.tool_calls.hermes import HERMES, INTERNLM
from engine.text.tool_calls.llama import LLAMA
from engine.text.tool_calls.mistral import MISTRAL, MISTRAL_NAMED
from engine.text.tool_calls.qwen_coder import QWEN_CODER
from schema import Task, TaskArgsInvalid
from schema.answers.response import ResponseMessage, joined
from schema.tool_choice import functions_of
from tests.engine.conftest import TinyModel
from tests.engine.models.scripted_model import save_scripted_model
from tests.engine.models.tiny_models import byte_tokenizer
from tests.engine.sampling.grammar_tasks import WORD, closed
from tests.engine.sampling.test_grammar_tokenizers import allowed

HOT: dict[str, Any] = {"do_sample": True, "temperature": 3.0, "top_k": 0}
# Without the white space that a model of random numbers would fill the answer with.
SHORT: dict[str, Any] = {
    "generation_config": {"max_new_tokens": 200, "logit_bias": {"198": -100}, **HOT},
    "seed": 1,
}


def tool(name: str, parameters: Any = None) -> dict[str, Any]:
    function = {"name": name} | ({} if parameters is None else {"parameters": parameters})
    return {"type": "function", "function": function}


POINT = {
    "$defs": {"axis": {"enum": [0, 1]}},
    "type": "object",
    "properties": {"x": {"$ref": "#/$defs/axis"}, "note": WORD},
    "required": ["x"],
    "additionalProperties": False,
}
TOOLS = [tool("weather", closed(city=WORD, days={"enum": [1, 2]})), tool("go", POINT), tool("now")]
VALID = {name: Draft202012Validator(p or closed()) for name, p in functions_of(TOOLS).items()}


def task(choice: Any = "required", **fields: Any) -> Task:
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": TOOLS,
        "tool_choice": choice,
        "answer_format": "message",
        "generation_config": {"max_new_tokens": 400},
    }
    return Task.from_fields(**(asked | fields))


def form(**properties: Any) -> dict[str, Any]:
    """The fields of a task without tools whose answer has a form."""
    schema = {"type": "json_schema", "schema": closed(**properties)}
    return {"tools": None, "choice": "auto", "structured_output": schema}


def names(message: ResponseMessage) -> list[str]:
    """The functions that are called; their arguments are valid, and there is no other text."""
    assert message["content"] == ""
    calls = [call["function"] for call in message["tool_calls"]]
    for call in calls:
        VALID[call["name"]].validate(json.loads(call["arguments"]))
    return [call["name"] for call in calls]


# --- Grammars, followed at random ----------------------------------------------------------------

FORMATS = {"hermes": HERMES, "internlm": INTERNLM, "llama": LLAMA, "mistral": MISTRAL}
FORMATS |= {"mistral, named": MISTRAL_NAMED}


def followed(grammar: Grammar, tokenizer: Any, seed: int) -> str:
    """A text that a grammar allows: at each place any of the tokens."""
    chance = random.Random(seed)
    matcher = GrammarCompiler(tokenizer, [tokenizer.eos_token_id]).compile(grammar)
    ids: list[int] = []
    while not matcher.done:
        assert len(ids) < 20_000
        ids.append(chance.choice(sorted(allowed(matcher))))
        matcher.accept(ids[-1])
    return str(tokenizer.decode(ids)).removesuffix(tokenizer.eos_token)


def read(text: str, formats: MessageFormats, *, is_open: bool = False) -> ResponseMessage:
    reader = MessageParser(formats, functions_of(TOOLS), (), "call{}".format, is_open=is_open)
    return joined([reader.push(text, "stop")[0]])


@pytest.mark.parametrize("special", [None, False, True])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_is_read_as_it_is_forced(name: str, special: bool | None) -> None:
    """Markers are plain text, tokens, or special tokens."""
    tools: ToolFormat = FORMATS[name]
    tokenizer: Any = byte_tokenizer()
    if special is not None:
        added = [AddedToken(m, special=special, normalized=False) for m in tools.markers]
        tokenizer.add_tokens(added, special_tokens=special)
    formats = MessageFormats(tools, None, {}, tokenizer.get_added_vocab())
    for seed in range(3):
        for choice, one in (("required", False), ("required", True), ({"function": "go"}, False)):
            asked = task(choice, parallel_tool_calls=not one)
            grammar = task_grammar(asked, formats, "")
            assert grammar is not None
            called = names(read(followed(grammar, tokenizer, seed), formats))
            assert called == ["go"] if choice != "required" else called
            assert len(called) == 1 or not one
    before, between, after, separator, begin, end = tools.layout or ("",) * 6
    call, other = (f"{before}{name}{between}{{}}{after}" for name in ("now", "later"))
    compiler = GrammarCompiler(tokenizer, [tokenizer.eos_token_id])
    for most, asked in ((MAX_CALLS, task()), (1, task(parallel_tool_calls=False))):
        grammar = task_grammar(asked, formats, "")
        assert grammar is not None
        for count in (1, 2, MAX_CALLS, MAX_CALLS + 1):
            text = begin + separator.join([call] * count) + end
            assert fits(text, compiler, grammar, tokenizer) == (count <= most)
            assert not fits(text.replace(call, other, 1), compiler, grammar, tokenizer)
        assert not fits("", compiler, grammar, tokenizer)


@pytest.mark.parametrize("marks", [THINK, MISTRAL_THINK])
@pytest.mark.parametrize("special", [None, False, True])
def test_reasoning_before_a_form(marks: ReasoningFormat, special: bool | None) -> None:
    tokenizer: Any = byte_tokenizer()
    if special is not None:
        added = [AddedToken(m, special=special, normalized=False) for m in marks[1:]]
        tokenizer.add_tokens(added, special_tokens=special)
    formats = MessageFormats(None, marks, {}, tokenizer.get_added_vocab())
    compiler = GrammarCompiler(tokenizer, [tokenizer.eos_token_id])
    answer = '{"a": 1}'
    thoughts = f"Hm {marks.begin[1:]} {{é\n\n"
    begun = marks.begin + thoughts + marks.end
    # What the prompt ends with: what the answer may be, and what it may not.
    cases: dict[str, tuple[list[str], list[str]]] = {
        "assistant": ([answer, begun + answer, f"{begun}\n\n{answer}"], ["Hm", begun + "No"]),
        f"assistant{marks.begin}\n": (
            [thoughts + marks.end + answer, f"{marks.end}\n{answer}"],
            [thoughts + marks.end + "No"],
        ),
        f"assistant{marks.begin}\n\n{marks.end}\n\n": ([answer], ["Hm", marks.begin]),
    }
    for prompt, (good, bad) in cases.items():
        grammar = task_grammar(task(**form(a={"const": 1})), formats, prompt)
        assert grammar is not None
        for text in good:
            assert fits(text, compiler, grammar, tokenizer), (prompt, text)
            is_open = prompt.strip().endswith(marks.begin)
            assert read(text, formats, is_open=is_open)["content"] == answer
        for text in bad:
            assert not fits(text, compiler, grammar, tokenizer), (prompt, text)


def fits(text: str, compiler: GrammarCompiler, grammar: Grammar, tokenizer: Any) -> bool:
    """Whether a grammar allows a text as an answer."""
    matcher = compiler.compile(grammar)
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        if matcher.done or token not in allowed(matcher):
            return False
        matcher.accept(token)
    return matcher.done or tokenizer.eos_token_id in allowed(matcher)


def test_keys_and_strictness_of_arguments() -> None:
    """Undeclared arguments come once, also behind reasoning that has the same text in it."""
    tokenizer: Any = byte_tokenizer()
    compiler = GrammarCompiler(tokenizer, [tokenizer.eos_token_id])
    parameters = {"type": "object", "properties": {}, "additionalProperties": True}
    open_tool = tool("go", parameters)
    strict = {"type": "function", "function": open_tool["function"] | {"strict": True}}
    start = '<tool_call>\n{"name": "go", "arguments": '
    for formats, before in (
        (MessageFormats(HERMES, None, {}), ""),
        (MessageFormats(HERMES, THINK, {}), ""),
        (MessageFormats(HERMES, THINK, {}), '<think>\n{"a": 1, "a": 1e999, "</think>\n'),
        (MessageFormats(MISTRAL_NAMED, None, {}), ""),
    ):
        for function, least in ((open_tool, 2), (strict, 0)):
            grammar = task_grammar(task({"function": "go"}, tools=[function]), formats, "")
            assert grammar is not None
            head, tail = (start, "}\n</tool_call>")
            if formats.tools is MISTRAL_NAMED:
                head, tail = ("[TOOL_CALLS]go[ARGS]", "")
            texts = [before + head + text + tail for text in ("{}", '{"a": 1}', '{"a": 1, "b": 1}')]
            texts += [before + head + '{"a": 1, "a": 1}' + tail]
            texts += [before + head + '{"a": 1e999}' + tail]
            fitting = [fits(text, compiler, grammar, tokenizer) for text in texts]
            assert fitting == [True, least > 0, least > 1, False, False], (formats, function)


# --- Engines -------------------------------------------------------------------------------------

TEMPLATES = {
    "hermes": "tools <tool_call>",
    "qwen_coder": "tools <tool_call> <function=f> <parameter=p>",
    "none": "x",
}
MakeEngine = Callable[[str], Engine]


@pytest.fixture(scope="module")
def engine(tiny_model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeEngine]:
    """Engines of a random model, by the name of its template."""
    root = tmp_path_factory.mktemp("templates")
    made: dict[str, Engine] = {}

    def get(name: str) -> Engine:
        if name not in made:
            copytree(tiny_model("llama"), root / name)
            names = "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}"
            template = f"{{# {TEMPLATES[name]} #}}{names}{{{{ messages[0].content }}}}"
            (root / name / "chat_template.jinja").write_text(template)
            config = EngineConfig(model=str(root / name), dtype="float32", threads=1)
            made[name] = Engine(config)
        return made[name]

    yield get
    for one in made.values():
        one.close()


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_random_model_calls(name: str, engine: MakeEngine) -> None:
    """If the layout of the model's calls is not known, Hermes' layout is used."""
    card = engine(name).card()
    assert card["tool_format"] == (None if name == "none" else name)
    (choice,) = engine(name).run_blocking(task({"function": "now"}, **SHORT))["choices"]
    assert choice["finish_reason"] == "tool_calls"
    assert names(choice["message"]) == ["now"]


def test_a_call_is_verified(engine: MakeEngine) -> None:
    """Its tokens, and what is read of them."""
    asked = task({"function": "go"}, return_token_ids=True, **SHORT)
    response: Any = engine("hermes").run_blocking(asked)
    assert engine("hermes").verify_blocking(asked, response)["verdict"] == "exact"
    (call,) = response["choices"][0]["message"]["tool_calls"]
    call["function"]["arguments"] += " "
    found = engine("hermes").verify_blocking(asked, response)["response_differences"]
    place = "choices.0.message.tool_calls.0.function.arguments"
    assert [one["field"] for one in found] == [place]


async def test_alone_under_load_and_streamed(engine: MakeEngine) -> None:
    settings = {"max_new_tokens": 30, "num_return_sequences": 2, "logprobs": 1, **HOT}
    tasks = [
        task(choice, seed=seed, generation_config=settings)
        for seed, choice in enumerate(["required", {"function": "go"}, "auto"])
    ]
    alone = [engine("hermes").run_blocking(one) for one in tasks]
    assert await asyncio.gather(*(engine("hermes").run(one) for one in tasks)) == alone
    for one, answer in zip(tasks, alone, strict=True):
        assert engine("hermes").run_blocking(one, lambda _: None) == answer


def test_the_message_is_read_from_the_text(engine: MakeEngine) -> None:
    choice = {"function": "weather"}
    (text,) = engine("hermes").run_blocking(task(choice, answer_format="text", **SHORT))["choices"]
    (message,) = engine("hermes").run_blocking(task(choice, **SHORT))["choices"]
    assert (text["finish_reason"], message["finish_reason"]) == ("stop", "tool_calls")
    written = text["message"]["content"]
    assert names(read(written, MessageFormats(HERMES, None, {}))) == names(message["message"])
    assert written.startswith('<tool_call>\n{"name": "weather", "arguments": {')


REFUSED: list[tuple[Any, str, str]] = [
    (tool("f", {"type": "object", "not": {}}), "tools.3.function.parameters", "not"),
    (tool("f", {"type": "string"}), "tools.3.function.parameters", "object"),
    (tool("f", ["a"]), "tools.3.function.parameters", "object"),
    (
        tool("f", {"type": "object", "properties": {"a": False}, "required": ["a"]}),
        "tools.3.function.parameters",
        "unsatisfiable",
    ),
]


@pytest.mark.parametrize(("more", "param", "said"), REFUSED)
def test_errors_name_functions_that_cannot_be_called(
    more: Any, param: str, said: str, engine: MakeEngine
) -> None:
    with pytest.raises(TaskArgsInvalid, match=said) as caught:
        engine("hermes").run_blocking(task(tools=[*TOOLS, more]))
    assert caught.value.param == param
    others = task({"function": "now"}, tools=[*TOOLS, more])
    (choice,) = engine("hermes").run_blocking(others)["choices"]
    assert names(choice["message"]) == ["now"]


def test_a_name_that_a_format_cannot_write() -> None:
    formats = MessageFormats(MISTRAL_NAMED, None, {})
    asked = task({"function": "a b"}, tools=[tool("a b")])
    with pytest.raises(TaskArgsInvalid, match='"a b"') as caught:
        task_grammar(asked, formats, "")
    assert caught.value.param == "tool_choice"
    assert task_grammar(asked, MessageFormats(HERMES, None, {}), "") is not None


def test_hermes_replaces_formats_without_a_layout() -> None:
    added = {"<tool_call>": 1}
    for unknown in (None, QWEN_CODER):
        formats = MessageFormats(unknown, THINK, {}, added)
        assert formats.that_can_be_forced() == MessageFormats(HERMES, THINK, {}, added)
    known = MessageFormats(LLAMA, None, {})
    assert known.that_can_be_forced() is known


CALL = '{"name": "weather", "arguments": {"city": "Paris", "days": 2}}'
# Template, plain tokens, special tokens, prompt, what the model would write, content, reasoning.
SCRIPTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], str, dict[str, Any]]] = {
    "Qwen3": (
        "tools <tool_call> </think> assistant",
        ("<think>", "</think>", "<tool_call>", "</tool_call>"),
        (),
        f"<think>\nHm {{.\n</think>\n\n<tool_call>\n{CALL}\n</tool_call>",
        {"choice": "required"},
    ),
    "DeepSeek": (
        "tools </think> assistant<think>",
        ("<think>", "</think>"),
        (),
        '\nHm {.\n</think>\n\n{"a": 1}',
        form(a={"enum": [1, 2]}),
    ),
    "Magistral": (
        "tools [TOOL_CALLS] [/THINK] assistant",
        (),
        ("[TOOL_CALLS]", "[THINK]", "[/THINK]"),
        f"[THINK]Hm {{.[/THINK][TOOL_CALLS][{CALL}]",
        {"choice": {"function": "weather"}},
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_model_reasons_first(name: str, tmp_path: Path) -> None:
    """All that it would write is allowed; an answer that is text has to begin at once."""
    words, plain, special, script, fields = SCRIPTS[name]
    template = f"{{# {words} #}}{words[words.index('assistant') :]}"
    prompt_tokens = len(byte_tokenizer()(template.partition("#}")[2])["input_ids"])
    for marker in (*plain, *special):
        if marker in template.partition("#}")[2]:
            prompt_tokens -= len(marker) - 1
    save_scripted_model(
        tmp_path, {prompt_tokens: script}, template=template, plain=plain, special=special
    )
    config = EngineConfig(model=str(tmp_path), dtype="float32", threads=1)
    with closing(Engine(config)) as engine:
        assert detect(template, engine._loaded.tokenizer).reasoning is not None
        (choice,) = engine.run_blocking(task(**fields))["choices"]
        (text,) = engine.run_blocking(task(**fields, answer_format="text"))["choices"]
    assert choice["message"]["reasoning_content"].strip() == "Hm {."
    if fields["choice"] == "auto":
        assert json.loads(choice["message"]["content"]) == {"a": 1}
        assert set(json.loads(text["message"]["content"])) == {"a"}
    else:
        assert names(choice["message"]) == ["weather"]
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] in CALL
        assert not text["message"]["content"].startswith(("<think>", "Hm"))
