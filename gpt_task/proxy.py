"""A proxy for downloads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import close_session

from gpt_task.config import ProxyConfig

# Both spellings: of two that differ, programs take the one or the other.
_VARIABLES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
_lock = threading.Lock()


def proxy_url(proxy: ProxyConfig) -> str:
    """Such as ``http://user:password@127.0.0.1:8080``; a host without a scheme is reached by HTTP.

    Name and password are taken as they are: what has a meaning in an address is percent-encoded
    already.
    """
    scheme, _, host = proxy.host.rpartition("://")
    login = proxy.username and f"{proxy.username}:{proxy.password}@"
    return f"{scheme or 'http'}://{login}{host}:{proxy.port}"


@contextmanager
def proxied(proxy: ProxyConfig | None) -> Iterator[None]:
    """Inside, huggingface_hub downloads through ``proxy``; without one, as it always does.

    It takes its proxy from the environment when it opens a session, so the environment of the whole
    process is another one meanwhile: one thread at a time.
    """
    if proxy is None or not proxy.host:
        yield
        return
    with _lock:
        before = {name: os.environ.get(name) for name in _VARIABLES}
        os.environ.update(dict.fromkeys(_VARIABLES, proxy_url(proxy)))
        close_session()
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
            close_session()
