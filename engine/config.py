"""What an operator can set on an engine: parsed strictly at the edge, frozen here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from engine.quantization.base import Split
from engine.quantization.registry import quantization
from schema.generation import DEFAULT_MAX_NEW_TOKENS
from schema.model_variant import AdapterName, Dtype, ModelVariant, QuantizeBits
from schema.validation.strict import NonNegativeInt, PositiveInt, Strict, StrictCall

Device = Literal["auto", "cpu", "cuda"]


def _on_or_off(value: Any) -> Any:
    """YAML reads on and off as true and false."""
    return ("on" if value else "off") if isinstance(value, bool) else value


Speculation = Annotated[Literal["on", "off"], BeforeValidator(_on_or_off)]
Compile = Annotated[Literal["auto", "on", "off"], BeforeValidator(_on_or_off)]
SplitSetting = Literal["auto", Split]


class AdapterSource(Strict):
    """Where a LoRA adapter is, in PEFT's format; the source alone may be written as a string."""

    source: Annotated[str, Field(min_length=1)] = Field(
        description="Hub id or a local directory.",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of the hub repository."
    )

    @model_validator(mode="before")
    @classmethod
    def _of_string(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


Adapters = Mapping[AdapterName, AdapterSource]


class EngineOptions(Strict):
    """What can be set on an engine of any model: also what stands under ``engine:`` in the YAML."""

    num_devices: PositiveInt = Field(
        default=1, description="Devices over which the model is split; 1 does not split it."
    )
    cache_dir: str | None = Field(
        default=None,
        description="Where files of the hub are kept; None: huggingface_hub's own directory.",
    )
    context_length: Annotated[int, Field(ge=2)] | None = Field(
        default=None,
        description="Longest prompt plus answer, in tokens; None: the model's own limit, or 4096 "
        "if it has none.",
    )
    cut_to_context: bool = Field(
        default=False,
        description="Lower a task's max_new_tokens to what its prompt leaves of the context. False "
        "refuses a task that asks for more.",
    )
    default_max_new_tokens: PositiveInt = Field(
        default=DEFAULT_MAX_NEW_TOKENS,
        description="Most tokens of an answer where neither the task nor the model's own settings "
        "say. Programs such as Codex do not say.",
    )
    max_sequences: PositiveInt = Field(
        default=32,
        description="Sequences that decode at once; a task counts its num_return_sequences, or "
        "num_beams in a beam search.",
    )
    max_waiting: PositiveInt = Field(
        default=256,
        description="Tasks that may wait beyond max_sequences; one more is refused.",
    )
    prefill_chunk: PositiveInt | None = Field(
        default=None,
        description="Prompts are prefilled in chunks of this many tokens, two of them in a forward "
        "at most; None: the device's defaults for both. It is part of the arithmetic: another "
        "chunk size may give other bits.",
    )
    max_stream_wait_steps: PositiveInt | None = Field(
        default=6,
        description="How long answers that are being generated wait for prompts of other tasks: a "
        "step with prompts takes at most so many times what it takes without them, as measured, "
        "and where more tasks wait for their first token than are being generated, so many times "
        "more. 1 favours answers, more favours first tokens and throughput, null sets no limit. "
        "It changes no bits.",
    )
    page_size: PositiveInt | None = Field(
        default=None,
        description="Tokens in a page of the KV cache; None: the device's default. On CUDA the "
        "paged attention kernel needs a multiple of 256.",
    )
    max_exclusive_tokens: PositiveInt = Field(
        default=8192,
        description="Most tokens, beams or sequences times max_new_tokens, of a task that runs "
        "through the generate fallback, for what continuous batching cannot run. All other tasks "
        "wait while it runs.",
    )
    kv_cache_tokens: PositiveInt | None = Field(
        default=None,
        description="Tokens that the KV cache holds; None sizes it from the device's memory.",
    )
    image_cache_bytes: NonNegativeInt = Field(
        default=256 * 2**20,
        description="Size of each cache of images, so that a repeated image is neither prepared "
        "nor encoded again: one of pixels where images are prepared, and one of features on the "
        "model's device. 0 keeps nothing. It changes no bits.",
    )
    max_kv_cache_bytes: PositiveInt | None = Field(
        default=None,
        description="Most memory of a KV cache whose kv_cache_tokens is None.",
    )
    deterministic: bool = Field(
        default=True,
        description="Run only at batch sizes that give the same bits. False is for measuring what "
        "that costs; answers then depend on the load.",
    )
    keep_measurements: bool = Field(
        default=True,
        description="Keep what is measured of a model at load, and do not measure it again with "
        "the same files, settings, versions, code and machine. In $GPT_TASK_SERVE_CACHE, or the "
        "user's cache directory; it may be deleted at any time.",
    )
    lookahead: bool | None = Field(
        default=None,
        description="Launch a step before the last one's tokens have been processed; None: on CUDA "
        "only. It changes no bits.",
    )
    speculation: Speculation = Field(
        default="on",
        description="Guess the next tokens of an answer and check several in one forward: what the "
        "prompt or the answer has said before, and what a grammar forces. It changes no bits. off "
        "generates token by token.",
    )
    compile: Compile = Field(
        default="auto",
        description="Compile the layers of a model on a CPU, with the system's C++ compiler: the "
        "first start of a model takes some ten seconds more, a step of a few rows a fifth less. "
        "auto compiles models of 100 MB and more. Part of the arithmetic.",
    )
    adapter_bytes: PositiveInt = Field(
        default=2**30,
        description="Memory for adapters that are loaded, which are kept in float32: the least "
        "recently used ones make room for others. Tasks wait while those in use fill it.",
    )
    max_adapter_rank: PositiveInt = Field(
        default=256, description="Largest rank that an adapter may have."
    )
    threads: PositiveInt | None = Field(
        default=None,
        description="CPU threads of torch; None leaves torch's choice. Part of the arithmetic.",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="Run Python code of the model repository. Off: only transformers' own.",
    )
    local_files_only: bool = Field(default=False, description="Never contact the hub.")


class EngineConfig(StrictCall, EngineOptions):
    """One model and the resources that it may use; a wrong field raises a `ValueError`."""

    model: str = Field(
        description="Hub id (Qwen/Qwen2.5-7B-Instruct), a local directory, or a GGUF file: its "
        "path, or its name after that of its hub repository (org/repository:file.gguf).",
    )
    from_hub: bool = Field(
        default=False,
        description="The model is a hub id even if a directory here has that name.",
    )
    model_id: str | None = Field(
        default=None,
        description="The name that tasks use and responses carry; model itself when None.",
    )
    revision: str | None = Field(
        default=None, description="Branch, tag or commit of the hub repository."
    )
    dtype: Dtype = Field(
        default="auto",
        description="Of weights and arithmetic; auto takes the dtype that the checkpoint was saved "
        "in.",
    )
    quantize_bits: QuantizeBits | None = Field(
        default=None,
        description="4 (NF4) or 8 (INT8) by bitsandbytes, None for unquantized weights.",
    )
    adapters: Adapters = Field(
        default={},
        description="LoRA adapters that tasks may name behind the model and a colon, by name.",
    )
    device: Device = Field(default="auto", description="auto takes CUDA where there is a GPU.")
    split: SplitSetting = Field(
        default="auto",
        description="How a model is split over several devices. tensor: each has a part of every "
        "layer, and a process (engine.parallel). layers: each has some of the layers. auto: "
        "tensor, or what the quantization allows. The layout is part of the arithmetic.",
    )

    @model_validator(mode="after")
    def _check_split(self) -> Self:
        quantized = quantization(self.quantize_bits)
        if quantized is not None and self.split not in ("auto", *quantized.splits):
            raise ValueError(
                f"split is {self.split!r}, which a quantized model cannot be: set split to "
                f"{' or '.join(map(repr, quantized.splits))} or leave quantize_bits out"
            )
        if self.adapters and self.tensor_parallel:
            raise ValueError(
                "adapters are not computed on a model that is split tensor by tensor: set split to "
                "'layers', num_gpus (in Python num_devices) to 1, or leave adapters out"
            )
        return self

    def replace(self, **changes: Any) -> Self:
        """The same with other values for some fields, validated as when it is made."""
        return type(self)(**{**dict(self), **changes})

    @property
    def variant(self) -> ModelVariant:
        """The model and its form, as tasks name them."""
        return ModelVariant(self.name, self.dtype, self.quantize_bits)

    @property
    def layout(self) -> str | None:
        """How the model is split over devices, such as "tensor:2"; None on a single one."""
        if self.num_devices == 1:
            return None
        split: str = self.split
        if split == "auto":
            quantized = quantization(self.quantize_bits)
            split = "tensor" if quantized is None else quantized.splits[0]
        return f"{split}:{self.num_devices}"

    @property
    def num_kept_states(self) -> int:
        """How many known prefixes of a model with recurrent layers may have a state."""
        return max(self.max_sequences, 8)

    @property
    def num_states(self) -> int:
        """States that a model with recurrent layers has room for.

        Each sequence has one and in a forward the next one, and known prefixes have theirs. The
        check of batch sizes takes 32.
        """
        return max(2 * self.max_sequences + self.num_kept_states, 32)

    @property
    def tensor_parallel(self) -> bool:
        """Whether the model is split tensor by tensor (`engine.parallel`)."""
        return self.layout is not None and self.layout.startswith("tensor")

    @property
    def repository(self) -> str:
        """The hub repository of a model of the hub."""
        return self.model if self.repository_file is None else self.model.partition(":")[0]

    @property
    def repository_file(self) -> str | None:
        """The GGUF file of the hub repository that is the model; None if it names none."""
        name = self.model.partition(":")[2]
        return name if name.lower().endswith(".gguf") else None

    @property
    def name(self) -> str:
        """The model's public name."""
        return self.model_id or self.model
