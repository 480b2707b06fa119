"""Downloading models before they are used."""

from __future__ import annotations

import logging

from huggingface_hub import snapshot_download

from gpt_task.config import Config, ProxyConfig, get_config
from gpt_task.proxy import proxied

logger = logging.getLogger(__name__)

# The engine reads safetensors, in the repository's first level.
_UNUSED = ("*/*", "*.bin", "*.pt", "*.pth", "*.h5", "*.msgpack", "*.tflite", "*.ot", "*.onnx")


def download_model(
    model_name: str, hf_model_cache_dir: str | None = None, proxy: ProxyConfig | None = None
) -> None:
    """Download the files of a model that the engine reads. Raises what huggingface_hub raises."""
    with proxied(proxy):
        snapshot_download(model_name, cache_dir=hf_model_cache_dir, ignore_patterns=list(_UNUSED))


def prefetch_models(config: Config | None = None) -> None:
    """Download ``config.preloaded_models``. Raises what huggingface_hub raises."""
    if config is None:
        config = get_config()
    for model in config.preloaded_models.base or ():
        logger.info("downloading %s", model.id)
        cache_dir = config.data_dir.models.huggingface if config.data_dir else None
        download_model(model.id, cache_dir, config.proxy)
