"""The arguments of the application: what stands under ``args:`` in ``serve_config.yaml``.

Parsed strictly: an unknown key, a wrong type or an impossible combination is an error that names
the key. Nothing is ignored and nothing is guessed.
"""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from schema.task import Dtype, QuantizeBits

if TYPE_CHECKING:
    from engine.config import EngineConfig

# Relative model directories start here, wherever Ray happens to start a replica. On another machine
# it is the unpacked copy that `serve run --working-dir .` uploads.
REPOSITORY = Path(__file__).resolve().parent.parent

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


def _gpu_share(value: object) -> object:
    # One validator, not a union: a union reports a fault once for each member.
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == "auto" or (is_number and 0 < float(value) <= 1):  # type: ignore[arg-type]
        return value
    raise ValueError(f'must be "auto" or a number above 0 and up to 1, got {value!r}')


NumGpus = Annotated[Literal["auto"] | float, PlainValidator(_gpu_share)]


class _Strict(BaseModel):
    """Frozen, without coercion; an unknown key is answered with the nearest known one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, value: Any) -> Any:
        if isinstance(value, dict):
            unknown = [key for key in value if key not in cls.model_fields]
            if unknown:
                raise ValueError("; ".join(unknown_key(key, cls) for key in unknown))
        return value


def unknown_key(key: object, model: type[BaseModel]) -> str:
    """What to say of a key that ``model`` does not have."""
    near = difflib.get_close_matches(str(key), model.model_fields, n=1)
    if near:
        return f"unknown key {str(key)!r}; did you mean {near[0]!r}?"
    return f"unknown key {str(key)!r}; the keys are {', '.join(model.model_fields)}"


class EngineArgs(_Strict):
    """Settings of one engine; what is not given has the default of `engine.config.EngineConfig`."""

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


class ModelArgs(_Strict):
    """One model as it is served: its own deployment, replicas and (where there are any) GPUs.

    Attributes:
        id: the name that tasks use.
        source: hub id or directory; the id itself when None. See `resolve_source`.
        dtype: "auto" takes the dtype of the checkpoint.
        device: "auto" takes GPUs where the cluster has enough of them free for this model.
        num_gpus: GPUs of each replica when it runs on GPUs; "auto" is one. A share lets several
            small models live on one GPU.
        min_replicas: 0 starts the first replica with the first task.
        target_ongoing_requests: tasks per replica above which another replica is started.
        max_ongoing_requests: tasks that Ray sends to one replica. More than the engine can hold, so
            that the engine's bounded queue decides when to refuse.
    """

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$", max_length=200)]
    source: Annotated[str, Field(min_length=1)] | None = None
    revision: str | None = None
    dtype: Dtype = "auto"
    quantize_bits: QuantizeBits | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_gpus: NumGpus = "auto"
    min_replicas: Annotated[int, Field(ge=0)] = 1
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveInt = 16
    max_ongoing_requests: PositiveInt = 4096
    engine: EngineArgs = EngineArgs()

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas ({self.max_replicas}) is less than "
                f"min_replicas ({self.min_replicas})"
            )
        if self.device == "cpu" and self.num_gpus != "auto":
            raise ValueError("num_gpus has no meaning with device: cpu; leave one of them out")
        config = self.engine_config()
        held = config.max_sequences + config.max_waiting
        if self.max_ongoing_requests <= held:
            raise ValueError(
                f"max_ongoing_requests ({self.max_ongoing_requests}) must be more than the engine "
                f"holds (max_sequences + max_waiting = {held}), so that the engine's own queue "
                "decides when to refuse a task"
            )
        return self

    @property
    def key(self) -> tuple[str, str, int | None]:
        """What must be unique among the served models."""
        return (self.id, self.dtype, self.quantize_bits)

    @property
    def deployment(self) -> str:
        """The name of the deployment: it stands in logs, metrics and ``serve status``."""
        parts = [self.id.replace("/", "--")]
        if self.dtype != "auto":
            parts.append(self.dtype)
        if self.quantize_bits is not None:
            parts.append(f"int{self.quantize_bits}")
        return ":".join(["Model", *parts])

    @property
    def gpus_per_replica(self) -> float:
        """GPUs of one replica, if it runs on GPUs at all."""
        return 1.0 if self.num_gpus == "auto" else float(self.num_gpus)

    def engine_config(self, device: Literal["auto", "cpu", "cuda"] | None = None) -> EngineConfig:
        """The engine's configuration, with paths as they are on this machine.

        Raises:
            ValueError: a setting that the engine refuses.
        """
        # Here, because the ingress reads this module too and must not load torch with the engine.
        from engine.config import EngineConfig  # noqa: PLC0415

        return EngineConfig(
            model=resolve_source(self.source or self.id),
            model_id=self.id,
            revision=self.revision,
            dtype=self.dtype,
            quantize_bits=self.quantize_bits,
            device=device or self.device,
            **self.engine.model_dump(exclude_none=True),
        )


class LimitArgs(_Strict):
    """What one request may cost.

    Attributes:
        max_body_mb: largest request body, in MB (10**6 bytes); a larger one is answered 413.
        request_timeout_s: a task that has not ended by then ends with an error. It includes the
            wait for a replica that is still loading.
    """

    max_body_mb: Annotated[float, Field(gt=0)] = 32.0
    request_timeout_s: Annotated[float, Field(gt=0)] = 600.0


class AppArgs(_Strict):
    """Everything under ``args:``."""

    models: Annotated[list[ModelArgs], Field(min_length=1)]
    limits: LimitArgs = LimitArgs()
    ingress_replicas: PositiveInt = 1
    preprocessor_replicas: PositiveInt = 1

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        for what, values in (
            ("(id, dtype, quantize_bits)", [model.key for model in self.models]),
            ("deployment name", [model.deployment for model in self.models]),
        ):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise ValueError(f"models: two models have the same {what}: {twice[0]}")
        return self


def resolve_source(source: str) -> str:
    """A directory as an absolute path on this machine; a hub id as it is.

    A source is a directory if it starts with ``/``, ``./``, ``../`` or ``~``, or if it exists below
    the repository. Relative paths start at the repository.
    """
    path = Path(source).expanduser()
    candidate = path if path.is_absolute() else REPOSITORY / path
    if source.startswith(("/", "./", "../", "~")) or candidate.is_dir():
        return str(candidate.resolve())
    return source


def explain(error: ValidationError, prefix: str = "args") -> list[str]:
    """One line for each fault, with the path of the key."""
    lines = []
    for fault in error.errors(include_url=False, include_context=False):
        path = ".".join([*([prefix] if prefix else []), *(str(part) for part in fault["loc"])])
        lines.append(f"{path}: {fault['msg'].removeprefix('Value error, ')}")
    return lines
