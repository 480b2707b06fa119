"""The deployment that turns images, in base64 or at an address, into pixel tensors, on CPU."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cachetools import LRUCache

from schema.model_variant import ModelVariant
from schema.task import Task
from serve_app.config.app_args import POOL, ModelArgs, PoolArgs
from serve_app.config.image_url_args import ImageUrlArgs
from serve_app.observability.log_filter import leave_out_refusals
from serve_app.replicas.images.fetch import Fetcher
from serve_app.replicas.images.image_sources import load_images
from serve_app.replicas.lazy_imports import load_libraries

if TYPE_CHECKING:
    from engine.vision.preprocessor import ImageInputs, ImagePreprocessor

# For so many seconds after its start a preprocessor leaves the CPU to the replicas that load models
# on the same machine. Then it imports its libraries, unless an image has come first.
_LIBRARIES_AFTER_S = 10.0
MAX_PROCESSORS = 32
"""Processors kept of models that are loaded on demand; the least recently used is dropped first."""


class PreprocessorReplica:
    """One process that prepares the images of all models.

    It imports its libraries some seconds after its start. It loads each model's image processor
    with the first image for it and keeps it: a processor is a few kilobytes of settings, without
    weights. Decoding runs in one worker thread, so that the event loop stays free for health
    checks; throughput grows with replicas (``preprocessor_replicas``), not with threads.
    """

    def __init__(
        self,
        models: list[ModelArgs],
        pool: PoolArgs | None = None,
        image_urls: ImageUrlArgs | None = None,
    ) -> None:
        leave_out_refusals()
        self._models = {model.deployment: model for model in models}
        self._pool = pool
        self._fetcher = None if image_urls is None else Fetcher(image_urls)
        self._processors: dict[str, ImagePreprocessor] = {}
        self._on_demand: LRUCache[str, ImagePreprocessor] = LRUCache(MAX_PROCESSORS)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")
        self._has_libraries = False
        later = threading.Timer(_LIBRARIES_AFTER_S, self._worker.submit, [self._load_libraries])
        later.daemon = True
        later.start()

    async def prepare(self, deployment: str, task: Task, images: list[str]) -> ImageInputs:
        """The pixel tensors of one task's images, as the model of ``deployment`` wants them.

        ``task, images`` are what `Task.split_images` returned. The result is meant to be handed on
        by reference: it goes through the object store, never through the ingress.

        Raises:
            TaskArgsInvalid: not base64, not an image, an address that is refused, or a model that
                reads no images.
            ImageDownloadError: the host of an address did not deliver.
        """
        loop = asyncio.get_running_loop()
        if not self._has_libraries:
            await loop.run_in_executor(self._worker, self._load_libraries)
        from engine.vision.preprocessor import image_params  # noqa: PLC0415 - see `serve_app.replicas.lazy_imports`

        files = await load_images(images, image_params(task), self._fetcher)
        return await loop.run_in_executor(self._worker, self._prepare, deployment, task, files)

    def _load_libraries(self) -> None:
        # On the worker thread, so that the event loop stays free and imports run once.
        load_libraries()
        self._has_libraries = True

    def _prepare(self, deployment: str, task: Task, images: list[str | bytes]) -> ImageInputs:
        # Runs on the one worker thread, which therefore owns the processors.
        from engine.vision.preprocessor import image_params  # noqa: PLC0415

        if deployment == POOL:
            processor = self._pooled(task.model)
        else:
            if deployment not in self._processors:
                self._processors[deployment] = _processor(self._models[deployment])
            processor = self._processors[deployment]
        return processor(images, image_params(task))

    def _pooled(self, model: str) -> ImagePreprocessor:
        """The processor of a model of the pool: the same in every dtype and quantization."""
        assert self._pool is not None
        if model not in self._on_demand:
            self._on_demand[model] = _processor(self._pool.model(ModelVariant(model)))
        return self._on_demand[model]


def _processor(model: ModelArgs) -> ImagePreprocessor:
    from engine.vision.preprocessor import ImagePreprocessor  # noqa: PLC0415

    # The device of the weights does not matter here.
    return ImagePreprocessor(model.engine_config(device="cpu"))
