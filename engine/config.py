"""What an operator can set on an engine: parsed strictly at the edge, frozen here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from schema.task import Dtype, QuantizeBits

Device = Literal["auto", "cpu", "cuda"]
Split = Literal["auto", "tensor", "layers"]

_CHOICES = {"dtype": Dtype, "device": Device, "split": Split}
_LEAST = {
    "num_devices": 1,
    "context_length": 2,
    "max_sequences": 1,
    "max_waiting": 1,
    "prefill_chunk": 1,
    "page_size": 1,
    "max_exclusive_tokens": 1,
    "kv_cache_tokens": 1,
    "image_cache_bytes": 0,
    "max_kv_cache_bytes": 1,
    "threads": 1,
}


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """One model and the resources that it may use.

    Attributes:
        model: hub id (``Qwen/Qwen2.5-7B-Instruct``) or a local directory.
        from_hub: ``model`` is a hub id even if a directory here has that name.
        model_id: the name that tasks use and responses carry; ``model`` itself when None.
        revision: branch, tag or commit of the hub repository.
        cache_dir: where files of the hub are kept; None takes huggingface_hub's own place.
        dtype: weights and arithmetic; "auto" takes the dtype that the checkpoint was saved in.
        quantize_bits: 4 (NF4) or 8 (INT8) by bitsandbytes, None for unquantized.
        device: "auto" takes CUDA where there is a GPU.
        num_devices: devices over which the model is split; 1 does not split it.
        split: how. "tensor": each has a part of every layer, and a process (`tensor_parallel`).
            "layers": each has some of the layers. "auto": "tensor", or "layers" for a quantized
            model. The layout is part of the arithmetic.
        context_length: longest prompt plus answer, in tokens; None takes the model's own limit.
        cut_to_context: lower a task's ``max_new_tokens`` to what its prompt leaves of the context.
            False refuses a task that asks for more.
        max_sequences: sequences that decode at once; a task counts its ``num_return_sequences``, or
            ``num_beams`` in a beam search.
        max_waiting: tasks that may be here beyond ``max_sequences``; one more is refused.
        prefill_chunk: prompts are prefilled in chunks of this many tokens; None takes what suits
            the device. It is part of the arithmetic: another chunk size may give other bits.
        page_size: tokens in a page of the KV cache; None takes what suits the device. On CUDA the
            paged attention kernel needs a multiple of 256.
        max_exclusive_tokens: most tokens, beams or sequences times ``max_new_tokens``, of a task in
            the exclusive lane, where models run that the batch loop cannot. Everybody waits while
            such a task runs.
        kv_cache_tokens: tokens that the KV cache holds; None sizes it from the device's memory.
        image_cache_bytes: what is kept of images, so that one that comes again is neither
            prepared nor encoded again: so many bytes of pixels where images are prepared, and so
            many of features on the model's device. 0 keeps nothing. It changes no bits.
        max_kv_cache_bytes: most memory of a KV cache whose ``kv_cache_tokens`` is None.
        deterministic: run only at row counts that give the same bits. False is for measuring what
            that costs; answers then depend on the load.
        lookahead: launch a step before the last one's tokens have been processed; None does so on
            CUDA. It changes no bits.
        threads: CPU threads of torch; None leaves torch's choice. Part of the arithmetic.
        trust_remote_code: run Python code of the model repository. Off: only transformers' own.
        local_files_only: never contact the hub.
    """

    model: str
    from_hub: bool = False
    model_id: str | None = None
    revision: str | None = None
    cache_dir: str | None = None
    dtype: Dtype = "auto"
    quantize_bits: QuantizeBits | None = None
    device: Device = "auto"
    num_devices: int = 1
    split: Split = "auto"
    context_length: int | None = None
    cut_to_context: bool = False
    max_sequences: int = 32
    max_waiting: int = 256
    prefill_chunk: int | None = None
    page_size: int | None = None
    max_exclusive_tokens: int = 8192
    kv_cache_tokens: int | None = None
    image_cache_bytes: int = 256 * 2**20
    max_kv_cache_bytes: int | None = None
    deterministic: bool = True
    lookahead: bool | None = None
    threads: int | None = None
    trust_remote_code: bool = False
    local_files_only: bool = False

    def __post_init__(self) -> None:
        for name, kind in _CHOICES.items():
            if (value := getattr(self, name)) not in get_args(kind):
                allowed = ", ".join(map(repr, get_args(kind)))
                raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
        if self.quantize_bits not in (None, *get_args(QuantizeBits)):
            raise ValueError(f"quantize_bits must be None, 4 or 8, got {self.quantize_bits!r}")
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if self.split == "tensor" and self.quantize_bits is not None:
            raise ValueError(
                "split is 'tensor', which a quantized model cannot be: set split to 'layers' or "
                "leave quantize_bits out"
            )

    @property
    def layout(self) -> str | None:
        """How the model lies on its devices, such as "tensor:2"; None on a single one."""
        if self.num_devices == 1:
            return None
        by_layers = self.split == "layers" or (self.split == "auto" and self.quantize_bits)
        return f"{'layers' if by_layers else 'tensor'}:{self.num_devices}"

    @property
    def tensor_parallel(self) -> bool:
        """Whether the model is split tensor by tensor (`engine.parallel`)."""
        return self.layout is not None and self.layout.startswith("tensor")

    @property
    def name(self) -> str:
        """The model's public name."""
        return self.model_id or self.model
