"""Where models come from: `Config`, from its arguments, a YAML file and the environment.

An argument wins over the file, the file over the environment, setting by setting:

* the file is named by ``GPT_TASK_CONFIG``, or is ``config.yml`` where the process runs, if there
  is one;
* a variable is named after the setting: ``gpt_proxy__host``, ``GPT_LOCAL_FILES_ONLY``. A whole
  object or list is JSON: ``GPT_PRELOADED_MODELS__BASE='[{"id": "gpt2"}]'``.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from schema.json_values import clipped

logger = logging.getLogger(__name__)

_PREFIX, _DELIMITER = "gpt_", "__"


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelConfig(_Settings):
    """A model of the hub."""

    id: str


class PreloadedModelsConfig(_Settings):
    """What `gpt_task.prefetch.prefetch_models` downloads."""

    base: list[ModelConfig] | None


class ModelsDirConfig(_Settings):
    """Where models lie: ``huggingface`` is a cache of huggingface_hub."""

    huggingface: str


class DataDirConfig(_Settings):
    """Where data lies."""

    models: ModelsDirConfig


class ProxyConfig(_Settings):
    """The proxy for downloads; none if ``host`` is empty."""

    host: str = ""
    port: int = 8080
    username: str = ""
    password: str = ""


class Config(_Settings):
    """Everything that can be configured.

    Attributes:
        preloaded_models: what `gpt_task.prefetch.prefetch_models` downloads.
        data_dir: where models are kept; None: in huggingface_hub's own place.
        proxy: used for downloads.
        local_files_only: never contact the hub.
        trust_remote_code: run Python code of model repositories. gpt-task always does; here it has
            to be asked for, and gpt-task has no such setting.

    Raises:
        ValidationError: an unknown setting, or one of a wrong type, wherever it comes from. Only
            the file may hold settings of others beside these; a line in the log names them.
    """

    preloaded_models: PreloadedModelsConfig = PreloadedModelsConfig(base=[])
    data_dir: DataDirConfig | None = None
    proxy: ProxyConfig | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _from_all_sources(cls, arguments: Any) -> Any:
        if not isinstance(arguments, Mapping):
            return arguments
        return _merged(_merged(_environment(), _file()), arguments)


@functools.cache
def get_config() -> Config:
    """The configuration of a `run_task` that is given none; read once."""
    return Config()


def _merged(low: Any, high: Any) -> Any:
    """``high`` over ``low``, setting by setting."""
    if not (isinstance(low, Mapping) and isinstance(high, Mapping)):
        return high
    return {**low, **{key: _merged(low.get(key), value) for key, value in high.items()}}


def _file() -> dict[str, Any]:
    named = os.environ.get("GPT_TASK_CONFIG")
    path = Path(named or "config.yml")
    if not path.is_file():
        if named:
            logger.warning("GPT_TASK_CONFIG names %s, and there is no such file", named)
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold settings by name, and holds a {type(content).__name__}")
    for key in content:
        if key not in Config.model_fields:
            logger.warning("%s: %s is no setting of gpt_task", path, clipped(str(key)))
    return {key: value for key, value in content.items() if key in Config.model_fields}


def _environment() -> dict[str, Any]:
    found: dict[str, Any] = {}
    # Sorted, so that what holds a whole object comes before its parts.
    for name, text in sorted((name.lower(), text) for name, text in os.environ.items()):
        first, *rest = name.removeprefix(_PREFIX).split(_DELIMITER)
        if not name.startswith(_PREFIX) or first not in Config.model_fields:
            continue
        value = _parsed(text)
        for part in reversed(rest):
            value = {part: value}
        found = _merged(found, {first: value})
    return found


def _parsed(text: str) -> Any:
    """An object or a list; anything else is text, of which pydantic makes numbers and truth."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return value if isinstance(value, dict | list) else text
