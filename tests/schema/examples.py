"""Valid tasks and requests: the documentation's examples, and some just within the limits."""

from typing import Any

from tests.schema.malformed import GOOD, PNG, TOOL

_ASK = [{"role": "user", "content": "I want to create a chat bot. Any suggestions?"}]
_LOOK = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What is in this image?"},
            {"type": "image", "base64": PNG},
        ],
    }
]


def _with(**settings: Any) -> dict[str, Any]:
    return {"model": "m", "messages": _ASK, "generation_config": settings}


def _asks_for(form: Any) -> dict[str, Any]:
    return {"model": "m", "messages": _ASK, "structured_output": form}


def _says(*messages: dict[str, Any]) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages)}


# https://docs.crynux.io/application-development/execute-tasks/text-to-text-task and the examples of
# github.com/crynux-network/gpt-task, as tasks.
DOCUMENTED: dict[str, dict[str, Any]] = {
    "the documented task": {
        "model": "gpt2",
        "messages": _ASK,
        "generation_config": {
            "max_new_tokens": 30,
            "do_sample": True,
            "num_beams": 1,
            "temperature": 1.0,
            "typical_p": 1.0,
            "top_k": 20,
            "top_p": 1.0,
            "repetition_penalty": 1.0,
            "num_return_sequences": 1,
        },
        "seed": 42,
        "dtype": "auto",
        "quantize_bits": 4,
    },
    "the documented model": {"model": "mistralai/Mistral-7B-v0.1", "messages": _ASK},
    "chat template": {
        "model": "Qwen/Qwen3-8B",
        "messages": _ASK,
        "generation_config": {"max_new_tokens": 32768},
        "seed": 42,
        "quantize_bits": 4,
    },
    "image": {
        "model": "OpenGVLab/InternVL3-2B",
        "messages": _LOOK,
        "generation_config": {"max_new_tokens": 256},
        "seed": 42,
        "dtype": "float16",
    },
    "tools": {
        "model": "Qwen/Qwen3-8B",
        "messages": [
            *_ASK,
            {
                "role": "assistant",
                "content": "Let me see.",
                "tool_calls": [
                    {
                        "function": {"name": "weather", "arguments": {"place": "Tokyo"}},
                        "id": "call_0",
                    }
                ],
            },
            {"role": "tool", "content": '{"temperature": "24"}', "tool_call_id": "call_0"},
        ],
        "tools": [TOOL],
        "generation_config": {
            "repetition_penalty": 1.1,
            "do_sample": True,
            "temperature": 0.7,
            "max_new_tokens": 32768,
        },
        "seed": 42424422,
    },
}

GOOD_TASKS: dict[str, dict[str, Any]] = DOCUMENTED | {
    "all kinds of messages": GOOD,
    "null is absent": {
        **_says({"role": "user", "content": "x", "tool_calls": None, "tool_call_id": None}),
        "tools": None,
        "generation_config": None,
        "template_args": None,
        "quantize_bits": None,
    },
    "an answer with a form": _asks_for(
        {"type": "json_schema", "schema": {"type": "object", "properties": {"schema": {}}}}
    ),
    "any object": _asks_for({"type": "json_object"}),
    "a pattern": _asks_for({"type": "regex", "pattern": "[0-9]+"}),
    "choices": _asks_for({"type": "choice", "choices": ["a", "b"]}),
    "no form, several beams": _asks_for(None) | {"generation_config": {"num_beams": 2}},
    "a form, one beam": _asks_for({"type": "json_object"})
    | {"generation_config": {"num_beams": 1}},
    "a call": GOOD | {"tool_choice": "required", "parallel_tool_calls": False},
    "a call of a function": GOOD | {"tool_choice": {"function": "clock"}},
    "no call has to be made": GOOD | {"tool_choice": "auto", "parallel_tool_calls": True},
    "one call at most": GOOD | {"parallel_tool_calls": False},
    "no tools, no calls at once": {"model": "m", "messages": _ASK, "parallel_tool_calls": False},
    "null settings": _with(
        max_new_tokens=None, stop_strings=None, temperature=None, num_beams=None
    ),
    "empty settings": _with(),
    "empty text": _says({"role": "user", "content": ""}),
    "Unicode": _says({"role": "user", "content": "naïve 🦊 \u0000 نص"}),
    "tool without id": _says({"role": "tool", "content": "x"}),
    "tool answers with an image": _says({"role": "tool", "content": _LOOK[0]["content"]}),
    "images for all roles": _says(
        {"role": "system", "content": _LOOK[0]["content"]},
        {"role": "assistant", "content": _LOOK[0]["content"]},
    ),
    "tool calls in any form": _says(
        {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": "{}"}]}
    ),
    "a message as the answer, and one that comes back": {
        **_says({"role": "assistant", "content": "", "reasoning_content": "Hm."}),
        "answer_format": "message",
    },
    "names": _says(
        {"role": "user", "content": "x", "name": "Ann"},
        {"role": "tool", "content": "x", "name": "clock"},
    ),
    "nothing said": _says(
        {"role": "assistant"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "assistant", "reasoning_content": "Hm."},
        {"role": "user", "content": []},
        {"role": "user", "content": [{"type": "text", "text": ""}]},
    ),
    "empty fields of other roles": _says(
        {"role": "user", "content": "x", "tool_calls": [], "reasoning_content": ""},
        {"role": "system", "content": "x", "tool_call_id": ""},
    ),
    "integers of JSON Schema": {
        **_with(max_new_tokens=8.0, num_beams=1.0, top_k=2e1, num_return_sequences=1.0),
        "seed": 4294967295.0,
        "quantize_bits": 4.0,
    },
    "no tool calls": _says({"role": "assistant", "content": "x", "tool_calls": []}),
    "64 images": _says({"role": "user", "content": [_LOOK[0]["content"][1]] * 64}),
    "paddings": _says(
        {
            "role": "user",
            "content": [
                {"type": "image", "base64": text}
                for text in ("AA==", "AAA=", "AA+/", "AA", "AAA", " AA\n+/\n", "A\tA = =")
            ],
        }
    ),
    "greedy": _with(do_sample=False, temperature=0.7),
    "greedy by temperature": _with(do_sample=True, temperature=0),
    "lowest": _with(
        max_new_tokens=1,
        stop_strings=[],
        num_beams=1,
        temperature=0,
        typical_p=1e-6,
        top_k=0,
        top_p=0,
        min_p=0,
        repetition_penalty=0.01,
        frequency_penalty=-2,
        presence_penalty=-2,
        logit_bias={"0": -100},
        logprobs=0,
        num_return_sequences=1,
    ),
    "highest": _with(
        max_new_tokens=1_000_000,
        stop_strings=["x" * 256] * 16,
        num_beams=64,
        temperature=100,
        typical_p=1,
        top_k=2**31 - 1,
        top_p=1,
        min_p=1,
        repetition_penalty=100,
        frequency_penalty=2,
        presence_penalty=2.0,
        logit_bias={str(10**9 + i): 100 for i in range(1024)},
        num_return_sequences=64,
    ),
    "log probabilities": _with(logprobs=20, num_beams=1, logit_bias={}),
    "several greedy": _with(num_return_sequences=2, do_sample=False),
    "several greedy by temperature": _with(num_return_sequences=2, temperature=0.0, num_beams=1),
    "several sampled": _with(num_return_sequences=3, do_sample=True),
    "several, as the model wants": _with(num_return_sequences=3),
    "several beams": _with(num_return_sequences=3, num_beams=3, do_sample=False),
    "highest seed": {"model": "m", "messages": _ASK, "seed": 2**32 - 1},
}


def _chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": list(messages) or _ASK, **fields}


_FUNCTION = {"type": "function", "function": TOOL["function"]}
_PICTURE = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}
_SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}

GOOD_CHATS: dict[str, dict[str, Any]] = {
    "plain": _chat(),
    "settings": _chat(
        n=2,
        seed=5,
        stop=["a", ""],
        max_tokens=7,
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        typical_p=0.9,
        repetition_penalty=1.1,
        frequency_penalty=1,
        presence_penalty=-1,
        logit_bias={"5": 1},
        logprobs=True,
        top_logprobs=3,
        stream=True,
        stream_options={"include_usage": True, "include_obfuscation": False},
        dtype="bfloat16",
        quantize_bits=4,
    ),
    "beams": _chat(n=2, num_beams=3, temperature=0, response_format={"type": "text"}),
    "hints": _chat(
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        reasoning_effort="low",
        verbosity="low",
        modalities=["text"],
        functions=[],
        function_call="none",
        min_tokens=0,
        length_penalty=1,
        skip_special_tokens=True,
    ),
    "messages": _chat(
        {"role": "developer", "content": "Be brief.", "name": "Ann"},
        {"role": "user", "content": [{"type": "text", "text": "What?"}, _PICTURE]},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [_FUNCTION],
            "reasoning_content": "Hm.",
            "refusal": None,
        },
        {"role": "tool", "tool_call_id": "a", "content": ""},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}], "more": 1},
    ),
    "free calls": _chat(tools=[_FUNCTION], tool_choice="auto", parallel_tool_calls=False),
    "forced calls": _chat(tools=[_FUNCTION], tool_choice="required"),
    "a named call": _chat(
        tools=[_FUNCTION],
        tool_choice={"type": "function", "function": {"name": TOOL["function"]["name"]}},
        chat_template_kwargs={"enable_thinking": False},
    ),
    "a form": _chat(
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "a", "schema": _SCHEMA, "strict": True},
        }
    ),
    "an object": _chat(response_format={"type": "json_object"}, num_beams=1),
}
GOOD_COMPLETIONS: dict[str, dict[str, Any]] = {
    "plain": {"model": "m", "prompt": "Once"},
    "settings": {
        "model": "m",
        "prompt": "Once",
        "n": 2,
        "best_of": 2,
        "echo": False,
        "suffix": "",
        "logprobs": 2,
        "max_tokens": 3,
        "stop": "a",
        "temperature": 0,
        "user": "me",
    },
}
