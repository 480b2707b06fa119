"""How far downloads and loading are: bars on a terminal, log lines elsewhere."""

from __future__ import annotations

import io
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import transformers.modeling_gguf_pytorch_utils as gguf_module
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, tqdm
from transformers.utils.logging import set_tqdm_hook

logger = logging.getLogger(__name__)

LOG_INTERVAL_S = 5.0


class LogBar(tqdm):
    """A progress bar that logs a line every few seconds and writes no carriage returns.

    What is over before the first interval logs nothing.
    """

    monitor_interval = 0  # no thread that redraws bars

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._logged = time.monotonic()
        # Not what huggingface_hub asks for, which is no bar where there is no terminal.
        kwargs["disable"] = bool(kwargs.get("disable"))
        kwargs |= {"file": io.StringIO(), "mininterval": LOG_INTERVAL_S, "miniters": 1}
        super().__init__(*args, **kwargs, delay=LOG_INTERVAL_S)  # type: ignore[no-untyped-call]

    def refresh(self, *args: Any, **kwargs: Any) -> None:
        """Log if an interval is over; may be called at any time."""
        now = time.monotonic()
        if now - self._logged >= LOG_INTERVAL_S:
            self._logged = now
            super().refresh(*args, **kwargs)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Log where it stands; tqdm calls this to draw a bar, with an empty ``msg`` to clear it."""
        if msg is not None or not self.total:
            return
        in_bytes = self.unit == "B"
        done = (
            f"{self.n / 2**30:.2f} of {self.total / 2**30:.2f} GiB"
            if in_bytes
            else f"{self.n} of {self.total}"
        )
        what = (self.desc or "progress").rstrip(": ")
        logger.info("%s: %s (%.0f %%)", what, done, 100 * self.n / self.total)


def on_terminal() -> bool:
    """Whether standard error is a terminal; in a log file bars would fill the file."""
    return sys.stderr.isatty()


def download_bar() -> type[Any] | None:
    """The class for `huggingface_hub`'s bars; None is its own."""
    return None if on_terminal() else LogBar


@contextmanager
def loading_bars() -> Iterator[None]:
    """Have transformers' bars in the body, such as that of the weights, logged or shown."""

    def make(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if on_terminal() or are_progress_bars_disabled():
            return factory(*args, **kwargs)
        return LogBar(*args, **kwargs)

    previous = set_tqdm_hook(make)
    # The module that reads GGUF files takes its bar from tqdm itself.
    module: Any = gguf_module
    own = module.tqdm
    module.tqdm = own if on_terminal() else LogBar
    try:
        yield
    finally:
        set_tqdm_hook(previous)
        module.tqdm = own
