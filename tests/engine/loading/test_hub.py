"""Loading from a hub: each failure has its own error, which says what to do."""

from __future__ import annotations

import json
import logging
import os
import pty
import shutil
import subprocess
import sys
import termios
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.config import EngineConfig
from engine.loading.loader import load_model
from engine.loading.reading.read_ahead import read_ahead
from engine.loading.snapshot import locate, with_weights
from schema.errors import (
    ModelCorrupt,
    ModelDownloadError,
    ModelGated,
    ModelIncomplete,
    ModelInvalid,
    ModelNotDownloaded,
    ModelRevisionInvalid,
    ModelUnsafe,
    TaskError,
)
from tests.engine.conftest import TinyModel
from tests.engine.loading.hub import COMMIT, Hub, serve_hub

MODEL = "org/tiny"


def _point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_ENDPOINT does, which is read when `huggingface_hub` is imported."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", address)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", address + template)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that is online, and an empty cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with serve_hub() as hub:
        _point_to(hub.address, monkeypatch)
        yield hub


@pytest.fixture
def repository(hub: Hub, tiny_model: TinyModel, tmp_path: Path) -> Path:
    """The files of `MODEL` on the hub, free to be damaged."""
    directory = tmp_path / "repository"
    shutil.copytree(tiny_model("qwen2"), directory)
    hub.repositories[MODEL] = directory
    return directory


def _config(**options: Any) -> EngineConfig:
    return EngineConfig(**{"model": MODEL, "device": "cpu"} | options)


def _refused(kind: type[TaskError], *said: str, **options: Any) -> None:
    with pytest.raises(TaskError) as caught:
        load_model(_config(**options))
    assert type(caught.value) is kind, caught.value
    for words in (MODEL, *said):
        assert words in caught.value.message


def _shard(directory: Path) -> list[str]:
    """Cut the only file of weights in two, as large models are; returns the names."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    names = sorted(tensors)
    shards = {
        "model-00001-of-00002.safetensors": names[: len(names) // 2],
        "model-00002-of-00002.safetensors": names[len(names) // 2 :],
    }
    for shard, part in shards.items():
        save_file({name: tensors[name] for name in part}, directory / shard, {"format": "pt"})
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    index = {"metadata": {}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    (directory / "model.safetensors").unlink()
    return list(shards)


def test_it_downloads_once_and_then_works_offline(
    hub: Hub, repository: Path, tiny_model: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    (repository / "pytorch_model.bin").write_bytes(b"never fetched")
    assert read_ahead(_config()) == 0
    loaded = load_model(_config())
    weights = repository / "model.safetensors"
    assert read_ahead(_config()) == read_ahead(_config(revision=COMMIT)) == weights.stat().st_size
    assert loaded.revision == COMMIT
    assert hub.downloads["model.safetensors"] == 1
    assert hub.downloads["pytorch_model.bin"] == 0
    load_model(_config())
    assert hub.downloads["model.safetensors"] == 1
    _point_to("http://127.0.0.1:9", monkeypatch)  # no server answers
    again = load_model(_config(revision=COMMIT))
    assert again.revision == COMMIT
    offline = load_model(_config(local_files_only=True))
    wanted = load_model(EngineConfig(model=str(tiny_model("qwen2")), device="cpu"))
    for name, tensor in wanted.model.state_dict().items():
        assert torch.equal(offline.model.state_dict()[name], tensor)


def test_shards(hub: Hub, repository: Path) -> None:
    shards = _shard(repository)
    source = with_weights(_config(), locate(_config()))
    assert source.weights == tuple(shards)
    load_model(_config())


def test_without_weights_none_are_fetched(hub: Hub, repository: Path) -> None:
    assert (locate(_config()).directory / "tokenizer.json").is_file()
    assert hub.downloads["model.safetensors"] == 0


@pytest.mark.parametrize("access", ["gated", "forbidden"])
def test_gated(hub: Hub, repository: Path, access: Any) -> None:
    hub.access[MODEL] = access
    _refused(ModelGated, "licence", "HF_TOKEN")


def test_no_such_repository(hub: Hub) -> None:
    _refused(ModelInvalid, "does not exist on the hub, or is private", "HF_TOKEN")


def test_no_such_revision(hub: Hub, repository: Path) -> None:
    _refused(ModelRevisionInvalid, "'v9'", "branches", revision="v9")
    _refused(ModelRevisionInvalid, "f" * 40, revision="f" * 40)


def test_the_hub_is_broken(hub: Hub, repository: Path) -> None:
    hub.access[MODEL] = "broken"
    _refused(ModelDownloadError, "try again later")


def test_a_download_breaks_off_and_is_taken_up_again(hub: Hub, repository: Path) -> None:
    first, second = _shard(repository)
    hub.gone.add(second)
    _refused(ModelDownloadError, "try again later")
    # Now the cache has half a model, and offline the error says so.
    _refused(ModelIncomplete, "half downloaded", f"hf download {MODEL}", local_files_only=True)
    hub.gone.clear()
    load_model(_config())
    assert hub.downloads[first] == 1
    load_model(_config(local_files_only=True))


def test_offline_and_never_downloaded(
    hub: Hub, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _refused(ModelNotDownloaded, "local_files_only is set", local_files_only=True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    _refused(ModelNotDownloaded, "HF_HUB_OFFLINE is set", f"hf download {MODEL}")
    assert not hub.downloads


def test_a_hub_that_does_not_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _point_to("http://127.0.0.1:9", monkeypatch)
    _refused(ModelDownloadError, "cannot be reached")


def test_a_pickle_only(hub: Hub, repository: Path) -> None:
    (repository / "model.safetensors").unlink()
    torch.save({}, repository / "pytorch_model.bin")
    _refused(ModelUnsafe, "pytorch_model.bin", "only safetensors")
    assert hub.downloads["pytorch_model.bin"] == 0


@pytest.mark.parametrize("name", ["../../model.safetensors", "/x.safetensors", "x.bin", 7, None])
def test_an_index_cannot_lead_elsewhere(hub: Hub, repository: Path, name: Any) -> None:
    (repository / "model.safetensors").unlink()
    index = {"weight_map": {"model.embed_tokens.weight": name}}
    (repository / "model.safetensors.index.json").write_text(json.dumps(index))
    _refused(ModelCorrupt, "index")


def test_a_file_that_the_cache_has_lost(hub: Hub, repository: Path, tmp_path: Path) -> None:
    _shard(repository)
    load_model(_config())
    (weights,) = (tmp_path / "cache").rglob("snapshots/*/model-00002-of-00002.safetensors")
    weights.unlink()
    _refused(ModelIncomplete, "half downloaded", local_files_only=True)
    load_model(_config())  # online it is fetched again


def test_a_file_that_the_cache_has_damaged(hub: Hub, repository: Path, tmp_path: Path) -> None:
    load_model(_config())
    (weights,) = (tmp_path / "cache").rglob("snapshots/*/model.safetensors")
    blob = weights.resolve()
    blob.write_bytes(blob.read_bytes()[:-100])
    _refused(ModelCorrupt, "model.safetensors has", f"hf download {MODEL}")


def test_code_of_the_repository_is_not_run(hub: Hub, repository: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (repository / "own.py").write_text(f"open({str(mark)!r}, 'w')\n")
    config = json.loads((repository / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (repository / "config.json").write_text(json.dumps(config))
    _refused(ModelUnsafe, "trust_remote_code")
    assert hub.downloads["own.py"] == 0
    assert not mark.exists()


def test_no_bars_in_a_log(
    hub: Hub,
    repository: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("engine.loading.reading.progress.LOG_INTERVAL_S", 0.0)
    _shard(repository)
    with caplog.at_level(logging.INFO):
        load_model(_config())
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("engine")]
    assert lines[0] == f"loading {MODEL} on cpu"
    assert any("of 0.00 GiB (100 %)" in line for line in lines), lines
    assert any(line.startswith("Loading weights: ") for line in lines)
    assert lines[-1].startswith(f"loaded {MODEL} in ")
    assert lines[-1].endswith("GiB of weights")
    output = capfd.readouterr()
    assert "\r" not in output.out + output.err


def test_bars_on_a_terminal(tiny_model: TinyModel) -> None:
    code = (
        "from engine.config import EngineConfig; from engine.loading.loader import load_model; "
        f"load_model(EngineConfig(model={str(tiny_model('qwen2'))!r}, device='cpu'))"
    )
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen([sys.executable, "-c", code], stderr=theirs)
    os.close(theirs)
    shown = b""
    # A terminal whose other side is closed gives an error instead of an end of file.
    with suppress(OSError):
        while piece := os.read(ours, 4096):
            shown += piece
    os.close(ours)
    assert process.wait() == 0, shown
    assert b"\rLoading weights" in shown
