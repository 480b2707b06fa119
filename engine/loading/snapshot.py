"""From a model's name to a directory or GGUF file with all of it, checked before it is read.

A repository of the hub is brought into the local cache first, at one commit, and is loaded from
there. So all problems with it (gated, missing, half downloaded, damaged, a pickle) are found here,
in one place, and not later in some library.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import (
    HfApi,
    parse_local_safetensors_file_metadata,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, SafetensorsParsingError

from engine.config import EngineConfig
from engine.loading.errors import load_errors
from engine.loading.quantized.gguf_header import GGUF, choose_gguf, read_gguf_header
from engine.loading.quantized.published import Stored, published_in
from engine.loading.reading.progress import download_bar
from schema.errors import ModelCorrupt, ModelIncomplete, ModelInvalid, ModelUnsafe

logger = logging.getLogger(__name__)

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

# Everything but the weights: configurations, tokenizers, templates.
_SMALL_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja")
_CODE = "*.py"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Shards lie beside their index: a name with a slash could lead anywhere.
_SHARD_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\.safetensors")
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True)
class Snapshot:
    """Where a model's files are on this machine.

    Attributes:
        directory: holds them.
        commit: of the hub repository; None for a directory of the operator's.
        weights: names of the files of weights, in order; empty before `with_weights`.
        gguf: name of the GGUF file that is the model; None for a directory in transformers' layout.
    """

    directory: Path
    commit: str | None
    weights: tuple[str, ...] = ()
    gguf: str | None = None

    def config(self, config: EngineConfig) -> EngineConfig:
        """``config`` for loading from the directory or file, without asking the hub again."""
        return config.replace(
            model=str(self.directory / (self.gguf or "")),
            from_hub=False,
            model_id=config.name,
            revision=None,
            local_files_only=True,
        )


def is_local(config: EngineConfig) -> bool:
    """Whether the model is a directory or GGUF file of the operator's, and not of the hub."""
    path = Path(config.model)
    return not config.from_hub and (path.is_dir() or (path.suffix == GGUF and path.is_file()))


def locate(config: EngineConfig) -> Snapshot:
    """Find and check the files of a model except its weights; download those that are missing.

    A name that is a directory or a GGUF file here means that, unless ``from_hub`` is set. A GGUF
    file is configuration, tokenizer and weights in one, so it is here when this returns.

    Raises:
        TaskError: a subclass for each way in which it fails; see `engine.loading.errors`.
    """
    with load_errors(config):
        path = Path(config.model)
        if is_local(config):
            source = Snapshot(path, None)
            if path.is_file():
                source = Snapshot(path.parent, None, gguf=path.name)
        elif (name := config.repository_file) is not None:
            source = _with_gguf(config, _download(config, [name]), name)
        else:
            patterns = [*_SMALL_FILES, _CODE] if config.trust_remote_code else list(_SMALL_FILES)
            source = _download(config, patterns)
        if source.gguf is None and not (source.directory / "config.json").is_file():
            source = _only_gguf(config, source)
        if source.gguf is not None:
            read_gguf_header(source.directory / source.gguf, config.name)
        else:
            _check_json(config, source.directory)
            published_in(source.directory, config.name)  # raises if its quantization is not read
    return source


def with_weights(config: EngineConfig, source: Snapshot) -> Snapshot:
    """The same, with all files of weights. Raises as `locate` does."""
    if source.gguf is not None:
        return replace(source, weights=(source.gguf,))
    with load_errors(config):
        names = weight_files(config, source)
        if source.commit is not None:
            _download(config, names, commit=source.commit)
        for name in names:
            _check_weights(config, source.directory / name)
    return replace(source, weights=tuple(names))


def locate_files(config: EngineConfig, json_file: str, weights: str) -> Snapshot:
    """Find and check two files that belong together; download them if they are of the hub.

    Raises:
        TaskError: a subclass for each way in which it fails; see `engine.loading.errors`.
    """
    with load_errors(config):
        if is_local(config):
            source = Snapshot(Path(config.model), None)
        else:
            source = _download(config, [json_file, weights])
        if not (source.directory / json_file).is_file():
            raise ModelInvalid(f"model {config.name!r} has no {json_file} in {config.model}")
        if not (source.directory / weights).is_file():
            names = [path.name for path in source.directory.iterdir()]
            if source.commit is not None:
                names += _repository_files(config, source.commit)
            _refuse_pickles(config, [name for name in names if name.startswith(Path(weights).stem)])
        _check_weights(config, source.directory / weights)
    return replace(source, weights=(weights,))


def weight_files(config: EngineConfig, source: Snapshot) -> list[str]:
    """The names of the safetensors files that belong to the model; they may still be missing.

    Raises:
        ModelUnsafe: it has pickles only.
        ModelInvalid: it has no weights at all.
        ModelCorrupt: its index is not a valid one.
    """
    directory = source.directory
    if (directory / SINGLE).is_file():
        return [SINGLE]
    if (directory / INDEX).is_file():
        shards = read_json(config, directory / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise ModelCorrupt(f"model {config.name!r} is damaged: {INDEX} names no weights")
        for shard in shards.values():
            if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
                raise ModelCorrupt(
                    f"model {config.name!r} is damaged: {INDEX} names {shard!r:.80} as a file of "
                    "weights"
                )
        return sorted(set(shards.values()))
    names = [path.name for path in directory.iterdir()]
    if source.commit is not None:
        names += _repository_files(config, source.commit)
    if SINGLE in names:
        return [SINGLE]
    _refuse_pickles(config, names)
    if source.commit is None:
        raise ModelInvalid(
            f"model {config.name!r} has no weights: neither {SINGLE} nor {INDEX} is in {directory}"
        )
    return [SINGLE]  # the hub is not reachable and the cache has none: this file is missing


def stored_tensors(source: Snapshot) -> dict[str, Stored]:
    """All tensors of a model's safetensors files, which are here."""
    return {
        name: Stored(tuple(tensor.shape), tensor.dtype)
        for file in source.weights
        for name, tensor in parse_local_safetensors_file_metadata(
            source.directory / file
        ).tensors.items()
    }


def read_json(config: EngineConfig, path: Path) -> dict[str, Any]:
    """The object in a JSON file of the model's.

    Raises:
        ModelCorrupt: it holds something else.
    """
    text = path.read_bytes()
    _refuse_lfs_pointer(config, path, text)
    try:
        content = json.loads(text)
    except ValueError as error:  # of UTF-8 too
        raise ModelCorrupt(
            f"model {config.name!r} is damaged: {path.name} is not JSON ({error}); {_again(config)}"
        ) from error
    if not isinstance(content, dict):
        raise ModelCorrupt(f"model {config.name!r} is damaged: {path.name} holds no JSON object")
    return content


def _download(config: EngineConfig, patterns: list[str], commit: str | None = None) -> Snapshot:
    """The snapshot of the repository in the cache, with all files that match ``patterns``."""
    folder = snapshot_download(
        config.repository,
        revision=commit or config.revision,
        cache_dir=config.cache_dir,
        local_files_only=config.local_files_only,
        allow_patterns=patterns,
        # In folders lie other formats of the same model; code may be in folders of its own.
        ignore_patterns=None if config.trust_remote_code else ["*/*"],
        tqdm_class=download_bar(),
    )
    return Snapshot(Path(folder), Path(folder).name)


def _with_gguf(config: EngineConfig, source: Snapshot, name: str) -> Snapshot:
    """The same with a GGUF file of the repository, which was to be downloaded."""
    if not name.endswith(GGUF) or "/" in name:
        raise ModelInvalid(
            f"model {config.name!r}: {name!r} is not the name of a GGUF file at the top of a "
            "repository"
        )
    if not (source.directory / name).is_file():
        assert source.commit is not None
        files = _repository_files(config, source.commit)
        names = sorted(file for file in files if file.endswith(GGUF))
        if names and name not in names:
            raise ModelInvalid(
                f"model {config.name!r}: {config.repository} has no file {name!r}; it has "
                f"{', '.join(names)}"
            )
        raise ModelIncomplete(
            f"model {config.name!r} is not complete: run `hf download {config.repository} {name}` "
            "where the hub can be reached"
        )
    return replace(source, gguf=name)


def _only_gguf(config: EngineConfig, source: Snapshot) -> Snapshot:
    """The same with the GGUF file of a model that has nothing else, if it has one."""
    names = {path.name for path in source.directory.glob(f"*{GGUF}")}
    if source.commit is not None:
        names |= set(_repository_files(config, source.commit))
    between = "/" if source.commit is None else ":"
    name = choose_gguf(names, f"{config.model.rstrip('/')}{between}", config.name)
    if name is not None and source.commit is not None:
        _download(config, [name], commit=source.commit)
    return replace(source, gguf=name)


def _repository_files(config: EngineConfig, commit: str) -> list[str]:
    """The names of all files of the repository; none if the hub cannot be asked."""
    if config.local_files_only:
        return []
    try:
        return HfApi().list_repo_files(config.repository, revision=commit)
    except (OfflineModeIsEnabled, HfHubHTTPError, OSError):
        return []


def _refuse_pickles(config: EngineConfig, names: list[str]) -> None:
    pickles = sorted(name for name in names if name.endswith(_PICKLES) and name.count("/") == 0)
    if pickles:
        raise ModelUnsafe(
            f"model {config.name!r} has its weights as a pickle only ({pickles[0]}), which can run "
            "code when it is opened; only safetensors are loaded: look for a revision that has "
            "them, or convert it with a tool that you trust"
        )


def _check_json(config: EngineConfig, directory: Path) -> None:
    if not (directory / "config.json").is_file():
        raise ModelInvalid(
            f"model {config.name!r} cannot be loaded by transformers: it has no config.json"
        )
    for path in sorted(directory.glob("*.json")):
        # Vocabularies are objects too, but there may be a list that is not used.
        if path.name.endswith(("config.json", "tokenizer.json", ".index.json")):
            read_json(config, path)


def _check_weights(config: EngineConfig, path: Path) -> None:
    """Refuse a file that is missing, or shorter or longer than its own header says."""
    if not path.is_file():
        raise ModelIncomplete(
            f"model {config.name!r} is half downloaded: {path.name} is missing; {_again(config)}"
        )
    with path.open("rb") as file:
        _refuse_lfs_pointer(config, path, file.read(len(_LFS_POINTER)))
        file.seek(0)
        header_size = int.from_bytes(file.read(8), "little")
    try:
        tensors = parse_local_safetensors_file_metadata(path).tensors
    except SafetensorsParsingError as error:
        raise ModelCorrupt(
            f"model {config.name!r} is damaged: {path.name} is not a safetensors file; "
            f"{_again(config)}"
        ) from error
    end = max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    expected, found = 8 + header_size + end, path.stat().st_size
    if found != expected:
        raise ModelCorrupt(
            f"model {config.name!r} is damaged: {path.name} has {found} bytes and should have "
            f"{expected}; {_again(config)}"
        )


def _refuse_lfs_pointer(config: EngineConfig, path: Path, start: bytes) -> None:
    if start.startswith(_LFS_POINTER):
        raise ModelIncomplete(
            f"model {config.name!r} is half downloaded: {path.name} is a Git LFS pointer and not "
            f"the file itself: run `git lfs pull` in {path.parent}"
        )


def _again(config: EngineConfig) -> str:
    """What to do about a damaged or incomplete copy."""
    if is_local(config):
        return "copy the model again"
    revision = f" --revision {config.revision}" if config.revision else ""
    return f"run `hf download {config.repository}{revision}` where the hub can be reached"
