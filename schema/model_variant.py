"""Which model, in which form: the name of a model, its dtype and its quantization.

Names are hub ids such as ``Qwen/Qwen3-8B``, and the names that operators give. Behind a colon a
task may name an adapter of the model: ``Qwen/Qwen3-8B:sql``. Names come from clients and are used
in messages, file names and addresses. So their form is restricted: no directory, no ``..``, no
control character.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field

from schema.errors import ModelInvalid
from schema.message import rule

Dtype = Literal["float16", "bfloat16", "float32", "auto"]
QuantizeBits = Literal[4, 8]

MAX_MODEL_CHARS = 512

_PATHS = ("/", "./", "../", "~")

_PART = r"[A-Za-z0-9_][A-Za-z0-9._-]*"
_ID = rf"{_PART}(?:/{_PART})*"
_MODEL_ID = re.compile(_ID)
_ADAPTER_NAME = re.compile(_PART)
_MODEL_NAME = re.compile(rf"{_ID}(?::{_PART})?")

MODEL_NAME_PATTERN = rf"^{_ID}(?::{_PART})?$(?!\n)"
"""The same for JSON Schema. Python's `$` also matches before a last newline, hence its end."""

_FORM = (
    "must be a name such as Qwen/Qwen3-8B: parts of letters, digits, dots, underscores and "
    "dashes, joined by single slashes"
)


def check_model_name(text: str) -> str:
    """``text`` itself, if it can name a model and an adapter of it; a pydantic validator."""
    if not _MODEL_NAME.fullmatch(text):
        raise rule(f"{_FORM}, and :adapter behind it for an adapter; it is never a path")
    return text


def check_model_id(text: str) -> str:
    """The same for a model without an adapter."""
    if not _MODEL_ID.fullmatch(text):
        raise rule(f"{_FORM}; it is never a path")
    return text


def check_adapter_name(text: str) -> str:
    """The same for the name of an adapter, which stands behind its model's and a colon."""
    if not _ADAPTER_NAME.fullmatch(text):
        raise rule("must be a name of letters, digits, dots, underscores and dashes, such as sql")
    return text


def is_path(text: str) -> bool:
    """Whether ``text`` begins as a path does, which no model's name can."""
    return text.startswith(_PATHS)


ModelName = Annotated[
    str, Field(min_length=1, max_length=MAX_MODEL_CHARS), AfterValidator(check_model_name)
]
AdapterName = Annotated[str, Field(max_length=100), AfterValidator(check_adapter_name)]


def quantization_label(bits: int | None) -> str | None:
    """The usual name of a quantization, such as INT4; None for unquantized weights."""
    return None if bits is None else f"INT{bits}"


@dataclass(frozen=True)
class ModelVariant:
    """A model in one dtype and quantization: what tasks ask for, and what is served or loaded.

    Two variants are the same if they are equal. Nothing is validated here, because a body is read
    for its variant before it is parsed.

    Attributes:
        id: the model's name, and behind a colon that of an adapter, if there is one.
        dtype: a `Dtype`; "auto" stands for the operator's choice, or the checkpoint's own.
        quantize_bits: a `QuantizeBits`; None for unquantized weights.
    """

    id: str
    dtype: str = "auto"
    quantize_bits: int | None = None

    @classmethod
    def of(cls, described: Mapping[str, Any]) -> Self:
        """The variant that a JSON object describes, such as an entry of ``GET /v1/models``."""
        return cls(described["id"], described["dtype"], described["quantize_bits"])

    def as_json(self) -> dict[str, Any]:
        """The fields under their public names: ``id``, ``dtype`` and ``quantize_bits``."""
        return asdict(self)

    @property
    def adapter(self) -> str | None:
        """The name of the adapter; None for the model as it is."""
        return self.id.partition(":")[2] or None

    @property
    def base(self) -> Self:
        """The model that is served or loaded, without an adapter."""
        return replace(self, id=self.id.partition(":")[0])

    def with_adapter(self, adapter: str) -> Self:
        """The model with one of its adapters."""
        return replace(self, id=f"{self.base.id}:{adapter}")

    @property
    def quantization(self) -> str | None:
        """The label of the quantization, such as INT4; None for unquantized weights."""
        return quantization_label(self.quantize_bits)

    @property
    def label(self) -> str:
        """The variant among those of its model: ``bfloat16`` or ``bfloat16, INT4``."""
        return ", ".join(filter(None, (self.dtype, self.quantization)))

    @property
    def metric_label(self) -> str:
        """The same as the value of a metric's label: ``bfloat16`` or ``bfloat16 int4``."""
        return " ".join(filter(None, (self.dtype, (self.quantization or "").lower())))

    @property
    def deployment(self) -> str:
        """The name of the deployment that serves it: in logs, metrics and ``serve status``."""
        parts = ["Model", self.id.replace("/", "--")]
        if self.dtype != "auto":
            parts.append(self.dtype)
        if self.quantization is not None:
            parts.append(self.quantization.lower())
        return ":".join(parts)

    def __str__(self) -> str:
        return f"{self.id} ({self.label})"


def unknown_adapter(wanted: ModelVariant, known: Iterable[str]) -> ModelInvalid:
    """The error of a task for an adapter that its model does not have."""
    there = ", ".join(known)
    return ModelInvalid(
        f"model {wanted.base.id!r} has no adapter {wanted.adapter!r}; "
        + (f"its adapters: {there}" if there else "it has none"),
        param="model",
    )
