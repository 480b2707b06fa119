"""A model that calls a tool, reads what it said, and answers, whatever the client's prompt is like.

Models that are small enough for tests do not call tools reliably. This one does, because its chat
template decides what comes next, and its weights write it: the template puts that text at the end
of the prompt, filled up to a fixed length, and the model copies the token that stands a fixed
number of places back. So the weights need not be trained, and what is tested stays: a call has the
name and the parameter of the tool that the client has sent, and an answer is the result that came
back. All else is as with any other model: a checkpoint, attention over the whole prompt, calls in
the format of Hermes, a real engine that samples and a real server.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.serve_app.conftest import running_server

MODEL = "weather"
"""The name under which it is served."""

CONTEXT = 32_768  # tokens; one is a byte
_END = "<|im_end|>"
_START = "<|im_start|>"
_FILLER = "<|filler|>"
_LONGEST = 512  # tokens of an answer
_BEFORE_ANSWER = "assistant\n"  # after `_START`, as in Hermes' prompts
_DISTANCE = _LONGEST + 1 + len(_BEFORE_ANSWER) - 1
"""From a token that is written, to the one in the prompt that comes after the one it copies."""

_HEAD = 128
# Of logits, and of attention: large enough that sampling and softmax know one token only.
_CERTAIN = 200.0
_SHARP = 4.0

# What DSPy wants is a text with fields of its own, and no call of a tool.
_TEMPLATE = """
{%- macro dspy(fields) -%}
    {%- for name, value in fields -%}
        {{- '[[ ## ' ~ name ~ ' ## ]]\\n' ~ value ~ '\\n\\n' -}}
    {%- endfor -%}
    {{- '[[ ## completed ## ]]' -}}
{%- endmacro -%}
{%- macro call(name, parameters, value) -%}
    {{- '<tool_call>\\n' -}}
    {%- set first = parameters.properties | first if parameters.properties else none -%}
    {{- {'name': name, 'arguments': {first: value} if first else {}} | tojson -}}
    {{- '\\n</tool_call>' -}}
{%- endmacro -%}
{%- set said = namespace(system='', text='', result=false) -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n<tools>' -}}
    {%- for tool in tools -%}{{- '\\n' ~ tool | tojson -}}{%- endfor -%}
    {{- '\\n</tools><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {%- set said.text = message.content or '' -%}
    {#- smolagents gives results as texts of the user. -#}
    {%- set said.result = message.role == 'tool' or said.text.startswith('Observation:') -%}
    {%- if message.role == 'system' -%}{%- set said.system = said.text -%}{%- endif -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' -}}
    {{- '<tool_response>\\n' ~ said.text ~ '\\n</tool_response>' if said.result else said.text -}}
    {%- for each in message.tool_calls or [] -%}
        {{- '\\n<tool_call>\\n' ~ each.function | tojson ~ '\\n</tool_call>' -}}
    {%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- set result = said.text.replace('Observation:', '')[:100] | trim -%}
{%- set observed = said.text.split('[[ ## observation_0 ## ]]\\n') | last -%}
{%- set observed = observed.split('\\n') | first -%}
{%- set next -%}
    {%- if '[[ ## next_tool_name ## ]]' in said.system -%}
        {%- set known = 'observation_0' in said.text -%}
        {{- dspy([
            ('next_thought', observed if known else 'I ask.'),
            ('next_tool_name', 'finish' if known else 'get_weather'),
            ('next_tool_args', '{}' if known else '{"city": "Paris"}'),
        ]) -}}
    {%- elif '[[ ## reasoning ## ]]' in said.system -%}
        {{- dspy([('reasoning', 'The tool said so.'), ('answer', observed)]) -}}
    {%- elif said.result and tools and tools[-1].function.name == 'final_answer' -%}
        {{- call('final_answer', tools[-1].function.parameters, result) -}}
    {%- elif said.result -%}
        {{- result -}}
    {%- elif tools -%}
        {%- set function = tools[0].function -%}
        {{- call(function.name, function.parameters, 'Paris') -}}
    {%- else -%}
        {{- '{"city": "Paris"}' -}}
    {%- endif -%}
{%- endset -%}
{{- next ~ '<|im_end|>' ~ '<|filler|>' * (LONGEST - 1 - next | length) -}}
{{- '<|im_start|>assistant\\n' -}}
""".replace("LONGEST", str(_LONGEST))


def save_weather_model(directory: Path) -> None:
    """Save the model and its tokenizer into a directory, as a hub repository has them."""
    tokenizer = _tokenizer()
    size = len(tokenizer)
    # A dimension that all tokens have, one for each token as it is read, one for it as a copy.
    constant, read, copied = 0, slice(1, size + 1), slice(size + 1, 2 * size + 1)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=size,
            hidden_size=-(-(2 * size + 1) // 64) * 64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=-(-size // _HEAD),
            num_key_value_heads=-(-size // _HEAD),
            head_dim=_HEAD,
            max_position_embeddings=CONTEXT,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            tie_word_embeddings=False,
        )
    )
    layer = model.model.layers[0]
    attention = layer.self_attn
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.model.embed_tokens.weight[:, constant] = 1
        model.model.embed_tokens.weight[:, read] = torch.eye(size)
        # Rotary embeddings make the product of these largest for two tokens at the distance.
        angles = _DISTANCE * model.model.rotary_emb.inv_freq.double()
        query = torch.cat([angles.cos(), -angles.sin()])
        key = torch.cat([torch.ones_like(angles), torch.zeros_like(angles)])
        heads = attention.config.num_attention_heads
        attention.q_proj.weight[:, constant] = _SHARP * query.repeat(heads).float()
        attention.k_proj.weight[:, constant] = key.repeat(heads).float()
        attention.v_proj.weight[:size, read] = torch.eye(size)
        attention.o_proj.weight[copied, :size] = torch.eye(size)
        model.lm_head.weight[:, copied] = _CERTAIN * torch.eye(size)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.eos_token_id
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def _tokenizer() -> PreTrainedTokenizerFast:
    """A byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=_END,
        additional_special_tokens=[_START, _FILLER],
        model_max_length=CONTEXT,
    )
    fast.chat_template = _TEMPLATE
    return fast


@contextmanager
def weather_server(folder: Path) -> Iterator[str]:
    """A real server of the model, which is saved into ``folder``; gives its address."""
    save_weather_model(folder / "model")
    model = {
        "id": MODEL,
        "source": str(folder / "model"),
        "dtype": "float32",
        "device": "cpu",
        # Claude Code asks for 32000 tokens, which the context does not have beside a prompt.
        "engine": {"max_sequences": 8, "kv_cache_tokens": 4 * CONTEXT, "cut_to_context": True},
    }
    application = {
        "name": "default",
        "route_prefix": "/",
        "import_path": "serve_app.app:build",
        "args": {"models": [model]},
    }
    with running_server({"applications": [application]}, folder) as (address, _):
        yield address
