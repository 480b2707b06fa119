"""This project's graph with `EngineConfig.deterministic` off, which no configuration can say."""

# No `from __future__ import annotations` here: see `serve_app.app`.

from typing import Literal

from ray.serve import Application

from engine.config import EngineConfig
from serve_app import app
from serve_app.config.app_args import AppArgs, ModelArgs


class RelaxedModelArgs(ModelArgs):
    """A model whose batches may have any number of rows."""

    def engine_config(self, device: Literal["auto", "cpu", "cuda"] | None = None) -> EngineConfig:
        """As `ModelArgs.engine_config`, for measuring what determinism costs."""
        return super().engine_config(device).replace(deterministic=False)


def build(args: AppArgs) -> Application:
    """As `serve_app.app.build`."""
    models = [RelaxedModelArgs.model_validate(model.model_dump()) for model in args.models]
    return app.build(args.model_copy(update={"models": models}))
