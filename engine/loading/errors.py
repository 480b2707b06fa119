"""Errors of loading, by their cause: the libraries raise most of them as `OSError`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    IncompleteSnapshotError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from engine.config import EngineConfig
from schema.errors import (
    ModelCorrupt,
    ModelDownloadError,
    ModelGated,
    ModelIncomplete,
    ModelInvalid,
    ModelNotDownloaded,
    ModelRevisionInvalid,
    ModelUnsafe,
    OutOfMemory,
    TaskError,
)

_CausedBy = Callable[..., bool]


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
    """Turn any error of loading into a `TaskError` that says what to do."""
    try:
        yield
    except TaskError:
        raise
    except Exception as error:  # damaged files make the libraries raise many types
        raise _explained(config, error) from error


def _explained(config: EngineConfig, error: Exception) -> TaskError:
    causes = tuple(_causes(error))
    name = config.name

    def caused_by(*types: type[BaseException]) -> bool:
        return any(isinstance(cause, types) for cause in causes)

    if caused_by(torch.OutOfMemoryError):
        return OutOfMemory(f"model {name!r} does not fit into the device's memory")
    if caused_by(HFValidationError):
        hint = "; an adapter is not loaded by name: EngineConfig.adapters lists them"
        return ModelInvalid(
            f"model {name!r} is neither a directory or GGUF file here nor the id of a hub "
            "repository" + (hint if ":" in name else "")
        )
    if (hub := _of_the_hub(config, caused_by)) is not None:
        return hub
    if caused_by(HfHubHTTPError, LocalEntryNotFoundError, ConnectionError, TimeoutError):
        return ModelDownloadError(
            f"model {name!r} could not be downloaded ({_first_line(error)}): the hub cannot be "
            "reached or has a fault, and no copy is in the local cache; try again later"
        )
    if caused_by(SafetensorError):
        return ModelCorrupt(f"model {name!r} is damaged: its weights cannot be read: {error}")
    if "trust_remote_code" in str(error):
        return ModelUnsafe(
            f"model {name!r} needs Python code of its own repository, which is not run: set "
            "trust_remote_code for this model, if you have read that code and trust it"
        )
    if "ignore_mismatched_sizes" in str(error):  # only the log names the weights
        return ModelInvalid(
            f"model {name!r} could not be loaded: its weights have other shapes than its "
            "configuration says; the log names them; copy or download both again"
        )
    return ModelInvalid(f"model {name!r} could not be loaded: {error}")


def _of_the_hub(config: EngineConfig, caused_by: _CausedBy) -> TaskError | None:
    """The error if the hub, or the cache in its place, says what is wrong; else None."""
    name, revision = config.name, config.revision or "main"
    wanted = " ".join(filter(None, (config.repository, config.repository_file)))
    if caused_by(GatedRepoError):  # before the class that it derives from
        return ModelGated(
            f"model {name!r} is gated: accept its licence on its page of the hub and set HF_TOKEN "
            "to a token of that account"
        )
    if caused_by(RevisionNotFoundError):
        return ModelRevisionInvalid(
            f"model {name!r} has no revision {revision!r} on the hub: name one of its branches, "
            "tags or commits"
        )
    if caused_by(RepositoryNotFoundError):
        return ModelInvalid(
            f"model {name!r} does not exist on the hub, or is private: check the id; for a private "
            "one set HF_TOKEN"
        )
    if caused_by(IncompleteSnapshotError):
        return ModelIncomplete(
            f"model {name!r} is half downloaded: files of it are missing in the local cache; run "
            f"`hf download {wanted} --revision {revision}` where the hub can be reached"
        )
    offline = config.local_files_only or caused_by(OfflineModeIsEnabled)
    if offline and caused_by(LocalEntryNotFoundError, OfflineModeIsEnabled):
        why = "local_files_only is set" if config.local_files_only else "HF_HUB_OFFLINE is set"
        return ModelNotDownloaded(
            f"model {name!r} at revision {revision!r} is not in the local cache, and {why}: run "
            f"`hf download {wanted} --revision {revision}` where the hub can be reached"
        )
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
