"""What changes bits changes the fingerprint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine import Engine, EngineConfig
from engine.core.model_info import weights_digest
from engine.platform import cuda_facts
from engine.platform.cpu import CpuPlatform
from engine.platform.cuda import CudaPlatform
from tests.engine.conftest import TinyEngine, TinyModel

GPUS = [torch.device("cuda", 0), torch.device("cuda", 1)]


class Machine:
    """What torch and the libraries say of two GPUs, in the place of a machine that has them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._set = monkeypatch
        self.multiprocessors = [132, 132]
        monkeypatch.setattr(torch.cuda, "get_device_properties", self._properties)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(cuda_facts, "_cublas_version", lambda: "13.1.0")
        monkeypatch.setattr(cuda_facts, "_triton_version", lambda: "3.9.0")
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91500)
        monkeypatch.setenv("TORCH_DISABLE_NATIVE_JIT", "1")

    def _properties(self, device: torch.device) -> Any:
        number = self.multiprocessors[device.index]
        return SimpleNamespace(multi_processor_count=number, major=9, minor=0)

    def share_a_gpu(self) -> None:
        self.multiprocessors[1] = 66

    def have_another_cuda(self) -> None:
        self._set.setattr(torch.version, "cuda", "12.8")

    def have_another_cublas(self) -> None:
        self._set.setattr(cuda_facts, "_cublas_version", lambda: "13.1.1")

    def have_another_triton(self) -> None:
        self._set.setattr(cuda_facts, "_triton_version", lambda: None)

    def be_told(self) -> None:
        self._set.setenv("CUBLASLT_WORKSPACE_SIZE", "0")

    def take_native_kernels(self) -> None:
        self._set.setenv("TORCH_DISABLE_NATIVE_JIT", "0")


CHANGES = [
    *(Machine.share_a_gpu, Machine.have_another_cuda, Machine.have_another_cublas),
    *(Machine.have_another_triton, Machine.be_told, Machine.take_native_kernels),
]


@pytest.mark.parametrize("change", CHANGES)
def test_of_a_gpu(change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    before = CudaPlatform().arithmetic(GPUS)
    assert before == CudaPlatform().arithmetic(GPUS)
    change(machine)
    assert CudaPlatform().arithmetic(GPUS) != before


def test_what_a_platform_says_is_in_it(
    tiny_model: TinyModel, tiny_engine: TinyEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = tiny_engine("qwen2").card()
    fingerprints = {usual["system_fingerprint"]}
    for number in (132, 66):
        said = {"cuda": {"multiprocessors": [number]}}
        monkeypatch.setattr(CpuPlatform, "arithmetic", lambda *_, said=said: said)
        engine = Engine(tiny_engine("qwen2").config)
        fingerprints.add(engine.card()["system_fingerprint"])
        assert engine.card()["cuda"] == said["cuda"]
        engine.close()
    assert len(fingerprints) == 3
    assert {"tokenizers", "pillow"} <= set(usual["libraries"])


@pytest.mark.parametrize("suffix", [".tiktoken", ".json", ".model", ".jinja", ".safetensors"])
def test_files_of_a_directory(suffix: str, tmp_path: Path) -> None:
    """Also those of tokenizers in tiktoken's format."""
    config = EngineConfig(model=str(tmp_path))
    loaded: Any = SimpleNamespace(revision=None, gguf=None)
    file = tmp_path / f"file{suffix}"
    file.write_text("one")
    before = weights_digest(config, loaded)
    file.write_text("two")
    assert weights_digest(config, loaded) != before
