"""A proxy for downloads."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import close_session

from gpt_task.config import ProxyConfig

# Both spellings, because programs read one or the other.
_VARIABLES = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
_lock = threading.Lock()


def proxy_url(proxy: ProxyConfig) -> str:
    """Such as ``http://user:password@127.0.0.1:8080``; a host without a scheme is reached by HTTP.

    Name and password are used as they are: characters with a meaning in an address have to be
    percent-encoded already.
    """
    scheme, _, host = proxy.host.rpartition("://")
    login = proxy.username and f"{proxy.username}:{proxy.password}@"
    return f"{scheme or 'http'}://{login}{host}:{proxy.port}"


@contextmanager
def proxied(proxy: ProxyConfig | None) -> Iterator[None]:
    """In the body, huggingface_hub downloads through ``proxy``; without one, as it always does.

    It reads its proxy from the environment when it opens a session. So the environment of the whole
    process is changed meanwhile: one thread at a time.
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
