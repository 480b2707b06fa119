"""Settings that clients send because other servers of open models have them.

What only says how a server should work is a hint. What changes the answer has to have the value
that means no change. Settings that this server has too, such as ``top_k``, are in
`schema.clients.openai.request`.
"""

from typing import Annotated, Any

from schema.clients.fields import Hint, Only, Strict

_ALL = "Tasks are served in the order in which they come."
_ONE = "One server answers, and it reports its usage always."
_BEAMS = "is not supported; num_beams asks for a beam search"
_FORM = "is not supported; use response_format"
_TEXT = "is not supported; the answer's text has no special tokens and no stop string"
_PROMPT = "is not supported; put it into chat_template_kwargs"


class SettingsOfOtherServers(Strict):
    """Fields of vLLM's and OpenRouter's requests, beside OpenAI's."""

    # vLLM, SGLang
    request_id: Annotated[Any, Hint("The header x-request-id sets the id.")] = None
    priority: Annotated[Any, Hint(_ALL)] = None
    cache_salt: Annotated[Any, Hint("Whether a beginning was kept does not show.")] = None
    include_reasoning: Annotated[Any, Hint("Reasoning is in a field of its own, always.")] = None
    separate_reasoning: Annotated[Any, Hint("Reasoning is in a field of its own, always.")] = None
    use_beam_search: Annotated[Any, Only(_BEAMS, (False,))] = None
    length_penalty: Annotated[Any, Only("is not supported; beams have transformers' 1", (1,))] = (
        None
    )
    early_stopping: Annotated[Any, Only("is not supported; leave it out", (False,))] = None
    min_tokens: Annotated[Any, Only("is not supported; leave it out", (0,))] = None
    ignore_eos: Annotated[
        Any, Only("is not supported; logit_bias can forbid its token", (False,))
    ] = None
    stop_token_ids: Annotated[Any, Only("is not supported; use stop", ([],))] = None
    bad_words: Annotated[Any, Only("is not supported; use logit_bias", ([],))] = None
    allowed_token_ids: Annotated[Any, Only("is not supported; use logit_bias")] = None
    include_stop_str_in_output: Annotated[Any, Only(_TEXT, (False,))] = None
    skip_special_tokens: Annotated[Any, Only(_TEXT, (True,))] = None
    spaces_between_special_tokens: Annotated[Any, Only(_TEXT, (True,))] = None
    return_tokens_as_token_ids: Annotated[
        Any, Only("is not supported; use return_token_ids", (False,))
    ] = None
    truncate_prompt_tokens: Annotated[Any, Only("is not supported; shorten the prompt")] = None
    guided_json: Annotated[Any, Only(_FORM)] = None
    guided_regex: Annotated[Any, Only(_FORM)] = None
    guided_choice: Annotated[Any, Only(_FORM)] = None
    guided_grammar: Annotated[Any, Only(_FORM)] = None
    structured_outputs: Annotated[Any, Only(_FORM)] = None
    # OpenRouter, LiteLLM
    provider: Annotated[Any, Hint(_ONE)] = None
    route: Annotated[Any, Hint(_ONE)] = None
    usage: Annotated[Any, Hint(_ONE)] = None
    session_id: Annotated[Any, Hint("Nothing is stored.")] = None
    trace: Annotated[Any, Hint("Nothing is stored.")] = None
    transforms: Annotated[Any, Only("is not supported; shorten the messages", ([],))] = None
    plugins: Annotated[Any, Only("is not supported; leave it out", ([],))] = None
    top_a: Annotated[Any, Only("is not supported; min_p is alike", (0,))] = None
    # llama.cpp, Ollama
    cache_prompt: Annotated[Any, Hint("Beginnings of prompts are kept always.")] = None
    keep_alive: Annotated[Any, Hint("The server's configuration says what stays loaded.")] = None


class ChatSettingsOfOtherServers(Strict):
    """Those of chats alone."""

    add_generation_prompt: Annotated[Any, Only(_PROMPT, (True,))] = None
    continue_final_message: Annotated[Any, Only(_PROMPT, (False,))] = None
    enable_thinking: Annotated[Any, Only(_PROMPT)] = None
    chat_template: Annotated[Any, Only("is not supported; the model has its own")] = None
    documents: Annotated[Any, Only("is not supported; put them into messages", ([],))] = None
    mm_processor_kwargs: Annotated[
        Any, Only("is not supported: images are prepared as their model does it", ({},))
    ] = None
