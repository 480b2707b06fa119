"""The arguments of the application: what stands under ``args:`` in ``serve_config.yaml``.

Parsed strictly: an unknown key, a wrong type or an impossible combination is an error that names
the key. No key is ignored and no value is guessed.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from engine.config import Adapters, Device, EngineConfig, SplitSetting
from schema.errors import ModelInvalid
from schema.model_variant import Dtype, ModelVariant, QuantizeBits, is_path
from schema.validation.strict import PositiveFloat, PositiveInt, Strict
from serve_app.config.accelerators import AcceleratorType
from serve_app.config.engine_args import EngineArgs
from serve_app.config.image_url_args import ImageUrlArgs
from serve_app.config.limit_args import AuthArgs, CorsArgs, LimitArgs
from serve_app.config.receipt_args import ReceiptArgs
from serve_app.config.scaling_args import ScalingArgs
from serve_app.config.strict import ModelId, NumGpus, Pattern

# Relative model directories start here, in whichever directory Ray starts a replica. On another
# machine it is the unpacked copy that `serve run --working-dir .` uploads.
REPOSITORY = Path(__file__).resolve().parents[2]

BYTES_PER_GB = 10**9
POOL = "Pool"  # the deployment of the models that are loaded on demand


class DeploymentArgs(ScalingArgs):
    """On which devices a deployment of engines runs, and with how many replicas.

    Attributes:
        device: "auto" takes GPUs where the cluster has enough of them free for this deployment.
        num_gpus: GPUs of each replica when it runs on GPUs; "auto" is one. A share lets several
            small models live on one GPU; a whole number above 1 splits a model over GPUs.
        accelerator_type: the type of GPU that its replicas wait for, as Ray names it; None takes
            any. Only with device "cuda", so that no replica ends up elsewhere.
    """

    device: Device = "auto"
    num_gpus: NumGpus = "auto"
    accelerator_type: AcceleratorType | None = None
    engine: EngineArgs = EngineArgs()

    @model_validator(mode="after")
    def _check_placement(self) -> Self:
        if self.device == "cpu" and self.num_gpus != "auto":
            raise ValueError("num_gpus has no meaning with device: cpu; leave one of them out")
        if self.accelerator_type is not None and self.device != "cuda":
            raise ValueError("accelerator_type needs device: cuda, which waits for such a GPU")
        if "num_devices" in self.engine.model_fields_set and self.device != "cpu":
            raise ValueError("engine.num_devices is for device: cpu; GPUs are set by num_gpus")
        return self

    @property
    def deployment(self) -> str:
        """The deployment's name: it stands in logs, metrics and ``serve status``."""
        raise NotImplementedError

    @property
    def gpus_per_replica(self) -> float:
        """GPUs of one replica, if it runs on GPUs at all."""
        return 1.0 if self.num_gpus == "auto" else float(self.num_gpus)

    def num_devices(self, device: Device) -> int:
        """Devices of one replica that runs on this kind of device."""
        if device == "cpu":
            return self.engine.num_devices
        return max(1, int(self.gpus_per_replica))


class ModelArgs(DeploymentArgs):
    """One model as it is served: its own deployment, replicas and (where there are any) GPUs.

    Attributes:
        id: the name that tasks use.
        source: hub id, directory or GGUF file; the id itself when None. See `resolve_source`.
        dtype: "auto" takes the dtype of the checkpoint.
        split: how a model is split over several GPUs; see `engine.config.EngineConfig`.
        adapters: LoRA adapters of the model by the names that tasks use behind the id and a colon:
            for each its source, as that of a model, and a revision if it is of the hub.
    """

    id: ModelId
    source: Annotated[str, Field(min_length=1)] | None = None
    revision: str | None = None
    dtype: Dtype = "auto"
    quantize_bits: QuantizeBits | None = None
    split: SplitSetting = "auto"
    adapters: Adapters = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_engine(self) -> Self:
        if self.split != "auto" and self.num_devices(self.device) == 1:
            raise ValueError("split has no meaning on a single GPU: set num_gpus to 2 or more")
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
    def variant(self) -> ModelVariant:
        """What must be unique among the served models."""
        return ModelVariant(self.id, self.dtype, self.quantize_bits)

    @property
    def deployment(self) -> str:
        """The deployment's name: it stands in logs, metrics and ``serve status``."""
        return self.variant.deployment

    def engine_config(self, device: Device | None = None) -> EngineConfig:
        """The engine's configuration, with paths as they are on this machine.

        Raises:
            ValueError: a setting that the engine refuses.
        """
        return EngineConfig(
            model=resolve_source(self.source or self.id),
            model_id=self.id,
            revision=self.revision,
            dtype=self.dtype,
            quantize_bits=self.quantize_bits,
            device=device or self.device,
            split=self.split,
            adapters={
                name: adapter.model_copy(update={"source": resolve_source(adapter.source)})
                for name, adapter in self.adapters.items()
            },
            **self.engine.given() | {"num_devices": self.num_devices(device or self.device)},
        )


class PooledModel(ModelArgs):
    """A model that a task has named; ``source`` is a directory below the pool's root, or None."""

    kv_cache_gb: PositiveFloat = 1.0

    def __str__(self) -> str:
        return f"model {self.id!r} ({self.variant.label})"

    def __hash__(self) -> int:
        return hash((self.variant, self.source))  # a mapping, as `adapters` is one, has no hash

    def engine_config(self, device: Device | None = None) -> EngineConfig:
        """As `ModelArgs.engine_config`; but the id can only mean a repository of the hub."""
        return (
            super()
            .engine_config(device)
            .replace(
                model=self.source or self.id,
                from_hub=self.source is None,
                max_kv_cache_bytes=int(self.kv_cache_gb * BYTES_PER_GB),
            )
        )


class PoolArgs(DeploymentArgs):
    """Models that are not configured and are loaded when a task asks for them.

    Attributes:
        allow: patterns of hub ids, such as ``Qwen/*``; a task for any other is refused.
        max_memory_gb: what the weights and KV caches of all engines of one replica may take, in GB
            (10**9 bytes). Other memory of a process (Python, libraries, activations) comes on top.
        kv_cache_gb: most memory of the KV cache of each engine.
        root: a directory in which ids are looked up (``root/org/name``), instead of the hub.
        revisions: branch, tag or commit of a hub id; main for those that are not named.
        max_wait_s: longest wait of a task for its model; then it is refused (503).
        max_waiting: tasks that may wait for models; the next is refused (503).
    """

    allow: Annotated[list[Pattern], Field(min_length=1)]
    max_memory_gb: PositiveFloat
    kv_cache_gb: PositiveFloat = 1.0
    root: Annotated[str, Field(min_length=1)] | None = None
    revisions: dict[ModelId, str] = Field(default_factory=dict)
    max_wait_s: PositiveFloat = 300.0
    max_waiting: PositiveInt = 256

    @model_validator(mode="after")
    def _check_pool(self) -> Self:
        if self.engine.trust_remote_code:
            raise ValueError(
                "engine.trust_remote_code would run the code of any repository that a task names: "
                "configure models that need it one by one, under models"
            )
        if self.num_devices(self.device) > 1:
            raise ValueError(
                "models of the pool are not split: set num_gpus to 1 or less, and configure a "
                "large model under models"
            )
        if self.engine.max_kv_cache_bytes is not None:
            raise ValueError("engine.max_kv_cache_bytes is set by kv_cache_gb; leave it out")
        if self.root and self.revisions:
            raise ValueError("revisions are of the hub and have no meaning with root")
        kv, memory = self.kv_cache_gb, self.max_memory_gb
        if kv >= memory:
            raise ValueError(f"kv_cache_gb ({kv:g}) leaves nothing of max_memory_gb ({memory:g})")
        self._pooled(ModelVariant("org/name"), None)  # raises if the engine refuses a setting
        return self

    @property
    def deployment(self) -> str:
        """The name of the deployment."""
        return POOL

    def allows(self, model: str) -> bool:
        """Whether tasks may name this model. ``*`` in a pattern matches slashes too."""
        return any(fnmatchcase(model, pattern) for pattern in self.allow)

    def model(self, variant: ModelVariant) -> PooledModel:
        """How a model is loaded; raises `ModelInvalid` if there is a root and it is not in it."""
        return self._pooled(variant, self.root and self._directory(self.root, variant.id))

    def _pooled(self, variant: ModelVariant, source: str | None) -> PooledModel:
        fields: dict[str, Any] = variant.as_json()
        return PooledModel(
            source=source,
            revision=self.revisions.get(variant.id),
            kv_cache_gb=self.kv_cache_gb,
            device=self.device,
            min_replicas=0,
            max_ongoing_requests=self.max_ongoing_requests,
            engine=self.engine,
            **fields,
        )

    def _directory(self, root: str, model: str) -> str:
        # Checked to be in the root, although the form of ids ensures this already.
        top = Path(resolve_source(root))
        with suppress(OSError):  # a part may be longer than a file's name can be
            directory = (top / model).resolve()
            if directory.is_relative_to(top) and (directory / "config.json").is_file():
                return str(directory)
        raise ModelInvalid(f"model {model!r} is not in the pool's root", param="model")


class AppArgs(Strict):
    """Everything under ``args:``."""

    models: list[ModelArgs] = Field(default_factory=list)
    pool: PoolArgs | None = None
    image_urls: ImageUrlArgs | None = None
    limits: LimitArgs = LimitArgs()
    auth: AuthArgs | None = None
    cors: CorsArgs | None = None
    receipts: ReceiptArgs | None = None
    ingress_replicas: PositiveInt = 1
    preprocessor_replicas: PositiveInt = 1

    @property
    def deployments(self) -> list[DeploymentArgs]:
        """All deployments that own engines, in the operator's order; the pool is the last."""
        return [*self.models, *([self.pool] if self.pool else [])]

    @model_validator(mode="after")
    def _check_models(self) -> Self:
        if not self.models and self.pool is None:
            raise ValueError("nothing is served: give models, a pool, or both")
        for what, values in (
            ("(id, dtype, quantize_bits)", [str(model.variant) for model in self.models]),
            ("deployment name", [model.deployment for model in self.models]),
        ):
            twice = [value for value, count in Counter(values).items() if count > 1]
            if twice:
                raise ValueError(f"models: two models have the same {what}: {twice[0]}")
        return self


def resolve_source(source: str) -> str:
    """A directory or GGUF file as an absolute path on this machine; a hub id as it is.

    A source is one of these if it starts with ``/``, ``./``, ``../`` or ``~``, or if it exists
    below the repository. Relative paths start at the repository, which holds the demo model; what
    is not there is looked for in the working directory, as an installation has no repository.
    """
    path = Path(source).expanduser()
    candidate = path if path.is_absolute() else REPOSITORY / path
    if is_path(source) and not candidate.exists() and (here := Path.cwd() / path).exists():
        candidate = here
    is_file = candidate.suffix == ".gguf" and candidate.is_file()
    if is_path(source) or candidate.is_dir() or is_file:
        return str(candidate.resolve())
    return source
