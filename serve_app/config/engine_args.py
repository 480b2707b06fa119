"""``engine`` of a model, or of the pool, in the YAML file."""

from __future__ import annotations

from serve_app.config.strict import NonNegativeInt, PositiveInt, Strict


class EngineArgs(Strict):
    """Settings of one engine; what is not given has the default of `engine.config.EngineConfig`.

    ``num_devices`` is for ``device: cpu``, to try a split model without GPUs: so many processes.
    """

    context_length: PositiveInt | None = None
    max_sequences: PositiveInt | None = None
    max_waiting: PositiveInt | None = None
    prefill_chunk: PositiveInt | None = None
    page_size: PositiveInt | None = None
    kv_cache_tokens: PositiveInt | None = None
    max_exclusive_tokens: PositiveInt | None = None
    image_cache_bytes: NonNegativeInt | None = None
    threads: PositiveInt | None = None
    trust_remote_code: bool | None = None
    local_files_only: bool | None = None
    num_devices: PositiveInt | None = None
