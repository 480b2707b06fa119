"""Keys that sign receipts: ``receipts`` under ``args:``."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from schema.validation.strict import Strict
from serve_app.config.strict import EnvironmentVariable, FileName


class ReceiptArgs(Strict):
    """Which key signs receipts, and which public keys are published.

    The private key never stands in the configuration, because Ray shows that.

    Attributes:
        key_file: a file with the Ed25519 private key that signs, in PEM; relative paths start at
            the repository.
        key_env: the name of an environment variable of the ingress that holds the same.
        other_public_keys: files of further public keys that are published, in PEM: of keys that
            have signed before, and of the one that will sign next.
    """

    key_file: FileName | None = None
    key_env: EnvironmentVariable | None = None
    other_public_keys: list[FileName] = Field(default_factory=list)

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.key_file is None) == (self.key_env is None):
            raise ValueError("give one of key_file and key_env")
        return self
