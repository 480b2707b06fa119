"""Limits of requests, keys and origins: ``limits``, ``auth`` and ``cors`` under ``args:``."""

from __future__ import annotations

import re
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from schema.validation.strict import NonNegativeInt, PositiveFloat, PositiveInt, Strict
from serve_app.config.strict import EnvironmentVariable, FileName

KEY_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def _key_name(name: str) -> str:
    if not KEY_NAME.fullmatch(name):
        raise ValueError("a key's name is 1 to 64 letters, digits, '_', '.' and '-'")
    return name


def _origin(origin: str) -> str:
    parts = urlsplit(origin)
    is_origin = parts.scheme in ("http", "https") and origin == f"{parts.scheme}://{parts.netloc}"
    if origin != "*" and not (is_origin and parts.hostname):
        raise ValueError('must be "*" or like https://app.example.org, without a path')
    return origin


class LimitArgs(Strict):
    """What one request may cost, and how many there may be at once.

    Attributes:
        max_body_mb: largest request body, in MB (10**6 bytes); a larger one is answered 413.
        body_timeout_s: longest time for a body to arrive; then 408, and the connection is closed.
        request_timeout_s: a task that has not ended by then ends with an error. It includes the
            wait for a replica that is still loading.
        stall_timeout_s: a replica that has begun a task and then sends no message for this long
            counts as lost.
        max_replays: how often a task runs again when its replica was lost.
        max_in_flight: requests that one ingress replica works on at the same time, open streams
            included; the next one is refused (503).
        shutdown_timeout_s: how long running requests may go on when the server is stopped; those
            that have not ended by then end with an error. New ones are refused meanwhile (503).
        prompts_at_once: prompts of one request that run at the same time, if it has several. Each
            takes a place as a request does, of its key too; with fewer places fewer run.
    """

    max_body_mb: PositiveFloat = 32.0
    body_timeout_s: PositiveFloat = 60.0
    request_timeout_s: PositiveFloat = 600.0
    stall_timeout_s: Annotated[float, Field(ge=5)] = 15.0  # replicas say `Alive` every 2 s
    max_replays: NonNegativeInt = 3
    max_in_flight: PositiveInt = 2048
    shutdown_timeout_s: PositiveFloat = 30.0
    prompts_at_once: PositiveInt = 16


class KeyLimitArgs(Strict):
    """What one key may do at one ingress replica; None is no limit.

    Attributes:
        max_concurrent: requests open at the same time; a stream is open until its end.
        requests_per_minute: on average; after a minute without requests so many may come at once.
    """

    max_concurrent: PositiveInt | None = None
    requests_per_minute: PositiveInt | None = None


class AuthArgs(KeyLimitArgs):
    """Keys, and what each may do. The keys themselves never stand in the configuration.

    Attributes:
        keys_file: a file of keys (see `api_keys`); relative paths start at the repository.
        keys_env: the name of an environment variable of the ingress that holds the same.
        keys: limits of single keys by their names, in place of those for all.
        public_docs: whether the API's description can be read without a key.
    """

    keys_file: FileName | None = None
    keys_env: EnvironmentVariable | None = None
    keys: dict[Annotated[str, AfterValidator(_key_name)], KeyLimitArgs] = Field(
        default_factory=dict
    )
    public_docs: bool = False

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        if (self.keys_file is None) == (self.keys_env is None):
            raise ValueError("give one of keys_file and keys_env")
        return self

    def limits_of(self, name: str) -> KeyLimitArgs:
        """The limits of one key: its own where it has them, else those of all."""
        own = self.keys.get(name, KeyLimitArgs())
        return KeyLimitArgs.model_validate(
            {
                limit: getattr(own if limit in own.model_fields_set else self, limit)
                for limit in KeyLimitArgs.model_fields
            }
        )


class CorsArgs(Strict):
    """Which web pages of other origins may call the API from a browser.

    Cookies and other credentials of the browser are never allowed: a key is sent as a header.

    Attributes:
        allow_origins: such as ``https://app.example.org``; ``*`` alone allows all.
    """

    allow_origins: Annotated[list[Annotated[str, AfterValidator(_origin)]], Field(min_length=1)]

    @model_validator(mode="after")
    def _check_all(self) -> Self:
        if "*" in self.allow_origins and len(self.allow_origins) > 1:
            raise ValueError('"*" allows all origins; leave out the others')
        return self
