"""In which form a model was published, and in which it is in memory."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Checkpoint:
    """The form of a model's weights in its files, for its card.

    Attributes:
        format: of the files: safetensors or gguf.
        quantization: the number format or method in which they are quantized; None if they are
            not.
        loaded_as: what the engine computes with.
    """

    format: str
    quantization: str | None
    loaded_as: str

    def card(self) -> dict[str, str | None]:
        """The form as JSON."""
        return asdict(self)


PLAIN = Checkpoint("safetensors", None, "float32")
