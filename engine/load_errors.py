"""What loading a model can raise, told apart: the libraries raise most of it as `OSError`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from engine.config import EngineConfig
from schema.errors import (
    ModelDownloadError,
    ModelInvalid,
    ModelNotDownloaded,
    OutOfMemory,
    TaskError,
)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop(0)
        if current is None or current in seen:
            continue
        seen.append(current)
        yield current
        queue += [current.__cause__, current.__context__]


@contextmanager
def load_errors(config: EngineConfig) -> Iterator[None]:
    """Turn whatever loading raises into a `TaskError` that says what to do."""
    name = config.name
    try:
        yield
    except TaskError:
        raise
    except torch.OutOfMemoryError as error:
        raise OutOfMemory(f"model {name!r} does not fit into the device's memory") from error
    except Exception as error:  # whatever a damaged file makes the libraries raise
        causes = tuple(_causes(error))

        def caused_by(*types: type[BaseException]) -> bool:
            return any(isinstance(cause, types) for cause in causes)

        if caused_by(GatedRepoError):
            raise ModelInvalid(
                f"model {name!r} is gated: accept its licence on the hub and set HF_TOKEN"
            ) from error
        if caused_by(RepositoryNotFoundError, RevisionNotFoundError):
            raise ModelInvalid(f"model {name!r} does not exist on the hub: {error}") from error
        if caused_by(HFValidationError):
            raise ModelInvalid(
                f"model {name!r} is neither a directory here nor the id of a hub repository"
            ) from error
        if caused_by(LocalEntryNotFoundError) and config.local_files_only:
            raise ModelNotDownloaded(
                f"model {name!r} is not in the local cache, and local_files_only is set"
            ) from error
        if caused_by(LocalEntryNotFoundError, HfHubHTTPError, ConnectionError, TimeoutError):
            raise ModelDownloadError(f"model {name!r} could not be downloaded: {error}") from error
        raise ModelInvalid(f"model {name!r} could not be loaded: {error}") from error
