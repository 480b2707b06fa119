"""The deployment that turns base64 pictures into pixel tensors, on CPU."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from engine.images import ImageInputs, ImagePreprocessor, image_params
from schema.task import Task
from serve_app.config import ModelArgs


class PreprocessorReplica:
    """One process that prepares the pictures of all models.

    It loads each model's image processor with the first picture for it and keeps it: a processor
    is a few kilobytes of settings, never weights. Decoding runs in one worker thread, so that the
    event loop stays free for health checks; more throughput is more replicas
    (``preprocessor_replicas``), not more threads.
    """

    def __init__(self, models: list[ModelArgs]) -> None:
        self._models = {model.deployment: model for model in models}
        self._processors: dict[str, ImagePreprocessor] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="images")

    async def prepare(self, deployment: str, task: Task, images: list[str]) -> ImageInputs:
        """The pixel tensors of one task's pictures, as the model of ``deployment`` wants them.

        ``task, images`` are what `Task.split_images` returned. The result is meant to be handed on
        by reference: it goes through the object store, never through the ingress.

        Raises:
            TaskArgsInvalid: not base64, not a picture, or a model that reads no pictures.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._prepare, deployment, task, images)

    def _prepare(self, deployment: str, task: Task, images: list[str]) -> ImageInputs:
        # Runs on the one worker thread, which therefore owns `_processors`.
        processor = self._processors.get(deployment)
        if processor is None:
            # The weights' device is none of this process's business.
            processor = ImagePreprocessor(self._models[deployment].engine_config(device="cpu"))
            self._processors[deployment] = processor
        return processor(images, image_params(task))
