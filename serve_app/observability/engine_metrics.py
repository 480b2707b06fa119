"""Makes metrics from the plain numbers of an engine, once a second and not for each token."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import ray

from serve_app.config.app_args import POOL, ModelArgs, PooledModel
from serve_app.observability import metrics

if TYPE_CHECKING:
    from engine.engine import Engine

PERIOD_S = 1.0

_GAUGES = {
    "waiting": metrics.WAITING,
    "running": metrics.RUNNING,
    "running_sequences": metrics.SEQUENCES,
    "kv_pages": metrics.KV_PAGES,
    "kv_pages_free": metrics.KV_FREE,
    "kv_pages_kept": metrics.KV_KEPT,
    "adapters_loaded": metrics.ADAPTERS_LOADED,
    "adapter_bytes": metrics.ADAPTER_BYTES,
}
_COUNTERS = {
    "prompt_tokens": metrics.PROMPT_TOKENS,
    "generated_tokens": metrics.GENERATED_TOKENS,
    "verified_tokens": metrics.VERIFIED_TOKENS,
    "prefix_tokens_reused": metrics.PREFIX_TOKENS,
    "decode_steps": metrics.DECODE_STEPS,
    "drafts_proposed": metrics.DRAFTS_PROPOSED,
    "drafts_accepted": metrics.DRAFTS_ACCEPTED,
    "known_tokens_read": metrics.KNOWN_TOKENS,
    "images_encoded": metrics.IMAGES_ENCODED,
    "images_reused": metrics.IMAGES_REUSED,
    "adapter_loads": metrics.ADAPTER_LOADS,
}
OUTCOMES = ("finished", "refused", "failed", "cancelled")
"""How a task ends; refused: see `serve_app.observability.log_filter.REFUSALS`."""


def labels_of(model: ModelArgs) -> dict[str, str]:
    """The deployment, the model and its variant: `metrics.MODEL_LABELS` without the replica."""
    return {
        "deployment": POOL if isinstance(model, PooledModel) else model.deployment,
        "model": model.id,
        "variant": model.variant.metric_label,
    }


class Ticker:
    """Calls a function once a second, on a thread of its own, until it is stopped.

    A thread, because an event loop is not running yet when a replica is made. Without Ray there is
    no reader of the metrics, and no thread is started.
    """

    def __init__(self, record: Callable[[], None]) -> None:
        self._stopped = threading.Event()
        if ray.is_initialized():
            threading.Thread(target=self._run, args=(record,), name="metrics", daemon=True).start()

    def stop(self) -> None:
        """Stop calling it. Idempotent."""
        self._stopped.set()

    def _run(self, record: Callable[[], None]) -> None:
        while not self._stopped.wait(PERIOD_S):
            record()


class EngineMetrics:
    """Records what an engine and its replica have counted since the last time.

    Args:
        engine: only this object takes the times of its ended tasks.
        outcomes: how many tasks have ended in each way so far.
        labels: see `metrics.MODEL_LABELS`.
    """

    def __init__(
        self, engine: Engine, outcomes: Mapping[str, int], labels: Mapping[str, str]
    ) -> None:
        self._engine = engine
        self._outcomes = outcomes
        self._labels = labels
        self._recorded: dict[str, int] = {}

    def record(self) -> None:
        """Update the metrics."""
        stats = self._engine.stats()
        for name, gauge in _GAUGES.items():
            gauge.record(stats[name], self._labels)
        metrics.LOAD_SECONDS.record(self._engine.load_seconds, self._labels)
        for name, counter in _COUNTERS.items():
            counter.record(self._since(name, stats[name]), self._labels)
        for outcome in OUTCOMES:
            news = self._since(outcome, self._outcomes[outcome])
            metrics.TASKS.record(news, {**self._labels, "outcome": outcome})
        for times in self._engine.take_times():
            metrics.FIRST_TOKEN.record(times.first_s, self._labels)
            metrics.TASK.record(times.total_s, self._labels)
            if times.per_token_s is not None:
                metrics.TOKEN.record(times.per_token_s, self._labels)

    def _since(self, name: str, now: int) -> int:
        before = self._recorded.get(name, 0)
        self._recorded[name] = now
        return now - before
