"""Where models come from: `Config`, from its arguments, a YAML file and the environment.

An argument wins over the file, the file over the environment, setting by setting:

* the file is named by ``GPT_TASK_CONFIG``, or is ``config.yml`` where the process runs, if there
  is one;
* a variable is named after the setting: ``gpt_proxy__host``, ``GPT_LOCAL_FILES_ONLY``. A whole
  object or list is JSON: ``GPT_PRELOADED_MODELS__BASE='[{"id": "gpt2"}]'``.
"""

from __future__ import annotations

import functools
import logging
import os
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from schema.json_values import clipped

logger = logging.getLogger(__name__)


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


class Config(BaseSettings):
    """Everything that can be configured.

    Attributes:
        preloaded_models: what `gpt_task.prefetch.prefetch_models` downloads.
        data_dir: where models are kept; None: in huggingface_hub's own place.
        proxy: used for downloads.
        local_files_only: never contact the hub.
        trust_remote_code: run Python code of model repositories. gpt-task always does, and has no
            such setting; here it is off by default.

    Raises:
        ValidationError: an unknown setting, or one of a wrong type. Only the file may hold settings
            of other programs as well; a log line names them.
    """

    model_config = SettingsConfigDict(
        extra="forbid", env_prefix="gpt_", env_nested_delimiter="__", case_sensitive=True
    )

    preloaded_models: PreloadedModelsConfig = PreloadedModelsConfig(base=[])
    data_dir: DataDirConfig | None = None
    proxy: ProxyConfig | None = None
    local_files_only: bool = False
    trust_remote_code: bool = False

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Where settings come from; an earlier source wins over a later one."""
        file = _File(settings_cls, _path_of_file())
        return init_settings, file, _Environment(settings_cls, case_sensitive=False)


@functools.cache
def get_config() -> Config:
    """The configuration of a `run_task` without ``config``; read once."""
    return Config()


def _path_of_file() -> Path:
    named = os.environ.get("GPT_TASK_CONFIG")
    path = Path(named or "config.yml")
    if named and not path.is_file():
        logger.warning("GPT_TASK_CONFIG names %s, and there is no such file", named)
    return path


class _File(YamlConfigSettingsSource):
    """The settings of the file, without those of other programs."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        try:
            content = yaml.safe_load(file_path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise _invalid(f"{file_path} is not valid YAML: {error}") from error
        if content is None:
            return {}
        if not isinstance(content, dict):
            kind = type(content).__name__
            raise _invalid(f"{file_path} must hold settings by name, and holds a {kind}")
        for key in content:
            if key not in Config.model_fields:
                logger.warning("%s: %s is not a setting of gpt_task", file_path, clipped(str(key)))
        return {key: value for key, value in content.items() if key in Config.model_fields}


class _Environment(EnvSettingsSource):
    """The settings of the environment. If a text is not JSON, the model reports the error."""

    def __init__(self, settings_cls: type[BaseSettings], case_sensitive: bool) -> None:
        super().__init__(settings_cls, case_sensitive=case_sensitive)
        # Sorted, so that what holds a whole object comes before its parts.
        self.env_vars = dict(sorted(self.env_vars.items()))

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            decoded = super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value
        return decoded if isinstance(decoded, dict | list) else value


def _invalid(problem: str) -> ValidationError:
    """What pydantic raises where a validator raises `ValueError`."""
    details = InitErrorDetails(type="value_error", input=None, ctx={"error": ValueError(problem)})
    return ValidationError.from_exception_data(Config.__name__, [details])
