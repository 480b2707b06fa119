"""The deployment that turns pictures, in base64 or at an address, into pixel tensors, on CPU."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from engine.images import ImageInputs, ImagePreprocessor, image_params
from schema.task import Task
from serve_app.config import POOL, ModelArgs, PoolArgs
from serve_app.fetch import Fetcher
from serve_app.image_sources import load_images
from serve_app.image_urls import ImageUrlArgs

MAX_PROCESSORS = 32
"""Processors of models that are loaded on demand; then the least recently used is dropped."""


class PreprocessorReplica:
    """One process that prepares the pictures of all models.

    It loads each model's image processor with the first picture for it and keeps it: a processor
    is a few kilobytes of settings, never weights. Decoding runs in one worker thread, so that the
    event loop stays free for health checks; more throughput is more replicas
    (``preprocessor_replicas``), not more threads.
    """

    def __init__(
        self,
        models: list[ModelArgs],
        pool: PoolArgs | None = None,
        image_urls: ImageUrlArgs | None = None,
    ) -> None:
        self._models = {model.deployment: model for model in models}
        self._pool = pool
        self._fetcher = None if image_urls is None else Fetcher(image_urls)
        self._processors: dict[str, ImagePreprocessor] = {}
        self._on_demand: OrderedDict[str, ImagePreprocessor] = OrderedDict()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")

    async def prepare(self, deployment: str, task: Task, images: list[str]) -> ImageInputs:
        """The pixel tensors of one task's pictures, as the model of ``deployment`` wants them.

        ``task, images`` are what `Task.split_images` returned. The result is meant to be handed on
        by reference: it goes through the object store, never through the ingress.

        Raises:
            TaskArgsInvalid: not base64, not a picture, an address that is refused, or a model that
                reads no pictures.
            ImageDownloadError: the host of an address did not deliver.
        """
        files = await load_images(images, image_params(task), self._fetcher)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._prepare, deployment, task, files)

    def _prepare(self, deployment: str, task: Task, images: list[str | bytes]) -> ImageInputs:
        # Runs on the one worker thread, which therefore owns the processors.
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
        processor = self._on_demand.pop(model, None) or _processor(self._pool.model(model))
        self._on_demand[model] = processor
        if len(self._on_demand) > MAX_PROCESSORS:
            self._on_demand.popitem(last=False)
        return processor


def _processor(model: ModelArgs) -> ImagePreprocessor:
    # The weights' device is none of this process's business.
    return ImagePreprocessor(model.engine_config(device="cpu"))
