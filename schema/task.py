"""A task: what to generate, with which model, and everything that the answer depends on."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from schema.generation import GenerationConfig
from schema.json_values import ALL_WHOLE, WHOLE, parse_json
from schema.message import (
    MAX_IMAGES,
    ImageBlock,
    JsonObject,
    Message,
    TextBlock,
    rule,
)
from schema.model_variant import (
    MODEL_NAME_PATTERN,
    Dtype,
    ModelName,
    ModelVariant,
    QuantizeBits,
)
from schema.structured import StructuredOutput
from schema.tool_choice import SCHEMA_RULES, ToolChoice, check_calls, forces_calls
from schema.validation.bulk import refuse_bulk
from schema.validation.problems import explain

__all__ = [
    "AnswerFormat",
    "Dtype",
    "GenerationConfig",
    "ImageBlock",
    "Message",
    "QuantizeBits",
    "Task",
    "TextBlock",
]

AnswerFormat = Literal["text", "message"]

MAX_MESSAGES = 4096
MAX_PROMPT_TOKENS = 1_000_000
"""Only a guard against absurd prompts of token ids: the real limit is the model's context."""
MAX_TOKEN_ID = 2**31 - 1
MAX_TOOLS = 512
MAX_EFFORT_CHARS = 64
MAX_SEED = 2**32 - 1
"""`transformers.set_seed` seeds numpy too, which takes no larger seeds. Answers with a larger seed
could not be compared with those of transformers."""

# A red square of 16 by 16 pixels: small enough to be read here, and a real PNG.
_RED_SQUARE = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAFklEQV"
    "R42mO4oKBAEmIY1TCqYfhqAABLfxAQegypMgAAAABJRU5ErkJggg=="
)

_EXAMPLES: list[Any] = [
    {
        "model": "gpt2",
        "messages": [
            {"role": "user", "content": "I want to create a chat bot. Any suggestions?"},
        ],
        "generation_config": {"max_new_tokens": 30, "do_sample": True, "top_k": 20},
        "seed": 42,
    },
    {
        "model": "OpenGVLab/InternVL3-2B-hf",
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "base64": _RED_SQUARE},
                    {"type": "text", "text": "What is in this image?"},
                ],
            },
        ],
        "dtype": "bfloat16",
        "quantize_bits": 8,
    },
    {
        "model": "Qwen/Qwen3-8B",
        "messages": [{"role": "user", "content": "Name a city and its country."}],
        "structured_output": {
            "type": "json_schema",
            "schema": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "country": {"type": "string"}},
                "required": ["city", "country"],
                "additionalProperties": False,
            },
        },
    },
]

_NO_FORM_WITH_BEAMS: dict[str, Any] = {
    "$comment": "A beam search cannot follow a form.",
    "not": {
        "properties": {
            "structured_output": {"type": "object"},
            "generation_config": {
                "type": "object",
                "properties": {"num_beams": {"type": "integer", "minimum": 2}},
                "required": ["num_beams"],
            },
        },
        "required": ["structured_output", "generation_config"],
    },
}


_ONE_PROMPT: dict[str, Any] = {
    "$comment": "The prompt is either messages or token ids.",
    "if": {
        "properties": {"prompt_token_ids": {"type": "array"}},
        "required": ["prompt_token_ids"],
    },
    "then": {"properties": {"messages": {"maxItems": 0}}},
    "else": {"required": ["messages"], "properties": {"messages": {"minItems": 1}}},
}

TokenIds = Annotated[
    list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]],
    Field(min_length=1, max_length=MAX_PROMPT_TOKENS, fail_fast=True),
    ALL_WHOLE,
]


def _no_default(schema: dict[str, Any]) -> None:
    del schema["default"]


def _absent_if_null(value: Any) -> Any:
    return {} if value is None else value


def _or_null(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"$ref": schema.pop("$ref")}, {"type": "null"}]
    schema["default"] = {}


class Task(BaseModel):
    """A text generation task. The answer is a function of the task alone."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        json_schema_extra={
            "examples": _EXAMPLES,
            "allOf": [_ONE_PROMPT, _NO_FORM_WITH_BEAMS, *SCHEMA_RULES],
        },
    )

    model: ModelName = Field(
        description="The model's id on the HuggingFace hub, or the name the server gave it; "
        "never a path. Behind a colon it may name one of the model's adapters: model:adapter.",
        json_schema_extra={"pattern": MODEL_NAME_PATTERN},
    )
    messages: list[Message] = Field(
        default=[],
        fail_fast=True,
        max_length=MAX_MESSAGES,
        description="The conversation so far. The model's chat template makes the prompt from it; "
        "where a model has none, the contents are joined.",
        json_schema_extra=_no_default,
    )
    prompt_token_ids: TokenIds | None = Field(
        default=None,
        description="The prompt as token ids, in place of messages: nothing is added to them. Ids "
        "that stand for images are refused.",
    )
    tools: Annotated[list[JsonObject], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = Field(
        default=None,
        description="Tools the model may call, given to its chat template as they are, or "
        "described in the system message where the template does not read them: mostly "
        '{"type": "function", "function": {"name", "description", "parameters"}}.',
    )
    tool_choice: ToolChoice = Field(
        default="auto",
        description="auto: the model may call tools. required: every choice is calls of the tools "
        "and nothing else. A function: every choice is one call of it. The arguments of such calls "
        "are valid under the function's parameters.",
    )
    parallel_tool_calls: bool = Field(
        default=True,
        description="false: at most one call. With auto, further calls that the model writes are "
        "not part of a message (answer_format).",
    )
    reasoning_effort: Annotated[str, Field(max_length=MAX_EFFORT_CHARS)] | None = Field(
        default=None,
        description="A hint for the chat template: its variable reasoning_effort, and "
        "enable_thinking, which is false for none. template_args come first. Templates that read "
        "neither are not changed by it.",
    )
    generation_config: Annotated[GenerationConfig, BeforeValidator(_absent_if_null)] = Field(
        default=GenerationConfig(),
        description="How to generate. null is the same as {}.",
        json_schema_extra=_or_null,
    )
    structured_output: StructuredOutput | None = Field(
        default=None,
        description="The form that every choice must have: tokens that break it are not sampled. "
        'A choice that reaches max_new_tokens is cut there, with finish_reason "length".',
    )
    template_args: JsonObject | None = Field(
        default=None,
        description="Further variables for the chat template. Those that it does not read are "
        "refused, but for enable_thinking, thinking and reasoning_effort, which are hints.",
    )
    use_chat_template: bool = Field(
        default=True,
        description="false: the contents are joined as they are, as for a model without a chat "
        "template, and the model continues that text.",
    )
    echo: bool = Field(
        default=False, description="true: the response has the prompt's text as prompt_text."
    )
    return_token_ids: bool = Field(
        default=False,
        description="true: the response has the prompt_token_ids, and each of its choices the "
        "token_ids, which are the tokens that were drawn, a token that ends the answer included. "
        "generation_config.logprobs has one entry for each of them then.",
    )
    receipt: bool = Field(
        default=False,
        description="true: the response has a receipt, signed by the server, of what was asked and "
        "answered and how it was computed.",
    )
    answer_format: AnswerFormat = Field(
        default="text",
        description="text: the answer is the text that the model writes. message: its reasoning "
        "and its calls of the tools are taken out of that text, where the model's form is known, "
        "and a stop string, which is looked for in the rest, is not part of it.",
    )
    seed: Annotated[int, Field(ge=0, le=MAX_SEED), WHOLE] = Field(
        default=0, description="Where the task's random numbers start."
    )
    dtype: Dtype = Field(
        default="auto",
        description="The type of the model's weights. auto: the operator's choice.",
    )
    quantize_bits: QuantizeBits | None = Field(
        default=None, description="Quantize the weights to this many bits; null: do not."
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_bulk(cls, fields: Any) -> Any:
        """Check cheap counts first: a million blocks cost seconds to validate."""
        refuse_bulk(fields, "tools", "template_args", "structured_output")
        return fields

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if self.prompt_token_ids is None and not self.messages:
            missing = "messages" not in self.model_fields_set
            problem = "is required" if missing else "must have at least 1 message"
            raise rule(f"{problem}; or prompt_token_ids in its place", "messages")
        if self.prompt_token_ids is not None and self.messages:
            raise rule("takes the place of messages; leave one of them out", "prompt_token_ids")
        return self

    @model_validator(mode="after")
    def _not_too_many_images(self) -> Self:
        count = sum(isinstance(block, ImageBlock) for block in self._blocks())
        if count > MAX_IMAGES:
            raise rule(f"have {count} images; at most {MAX_IMAGES} are allowed", "messages")
        return self

    @model_validator(mode="after")
    def _no_form_with_beams(self) -> Self:
        if self.structured_output is not None and (self.generation_config.num_beams or 1) > 1:
            raise rule(
                "cannot be followed by a beam search; leave it out, or num_beams",
                "structured_output",
            )
        return self

    @model_validator(mode="after")
    def _calls_that_can_be_forced(self) -> Self:
        check_calls(
            self.tools,
            self.tool_choice,
            structured_output=self.structured_output,
            num_beams=self.generation_config.num_beams or 1,
        )
        return self

    @property
    def variant(self) -> ModelVariant:
        """The model that it asks for, in one dtype and quantization."""
        return ModelVariant(self.model, self.dtype, self.quantize_bits)

    @property
    def is_templated(self) -> bool:
        """Whether a chat template may make its prompt."""
        return self.use_chat_template and self.prompt_token_ids is None

    @property
    def forces_calls(self) -> bool:
        """Whether an answer has to be calls of tools."""
        return forces_calls(self.tool_choice)

    @classmethod
    def parse(cls, body: bytes | str) -> Self:
        """The task in `body`, which is JSON. Raises `TaskArgsInvalid`, and nothing else."""
        return cls._checked(parse_json(body))

    @classmethod
    def from_fields(cls, /, **fields: Any) -> Self:
        """The task with these fields, checked as strictly as JSON is. Raises `TaskArgsInvalid`."""
        return cls._checked(fields)

    @classmethod
    def _checked(cls, fields: Any) -> Self:
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise explain(error, cls) from None

    def split_images(self) -> tuple[Self, list[str]]:
        """This task without its pixels, and the pixels: each image's base64 (or address), in order.

        The copy is the form in which a task is sent inside the cluster, where the pixels are sent
        separately. Its image blocks say where the images stand and have an empty `base64`, which no
        task of a client can have; so it is made without validation and must not be parsed again.
        """
        images = [block.base64 for block in self._blocks() if isinstance(block, ImageBlock)]
        if not images:
            return self, []
        messages = [_without_pixels(message) for message in self.messages]
        return self.model_copy(update={"messages": messages}), images

    def _blocks(self) -> list[TextBlock | ImageBlock]:
        contents = [message.content for message in self.messages]
        return [block for content in contents if isinstance(content, list) for block in content]


def _without_pixels(message: Message) -> Message:
    if not isinstance(message.content, list):
        return message
    content = [
        block.model_copy(update={"base64": ""}) if isinstance(block, ImageBlock) else block
        for block in message.content
    ]
    return message.model_copy(update={"content": content})
