"""The metrics of this server: every name, once. Ray exports them to Prometheus.

Each process records its own; an agent on each machine adds them up and answers Prometheus. On the
way a name gets the prefix ``ray_``, and a counter the suffix ``_total``. Of a histogram Ray keeps
only the number of values in each bucket, so its sum is an estimate.

Labels are few and bounded: a client cannot invent a label's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from ray.util import metrics as ray_metrics

PREFIX = "gpt_task_"

MODEL_LABELS = ("deployment", "model", "variant", "replica")
POOL_LABELS = ("deployment", "replica")
REQUEST_LABELS = ("deployment",)

# From a tiny model on a warm machine to a 70B on a CPU; three or four a decade, for quantiles.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
TOKEN_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075),
    *(0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.5),
)


@dataclass(frozen=True)
class Metric:
    """One metric of this process. Created when first recorded; thread safe after that."""

    kind: Literal["gauge", "counter", "histogram"]
    short_name: str
    description: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()

    @property
    def exported(self) -> str:
        """The name under which Prometheus has it; a histogram's series add their own endings."""
        return f"ray_{PREFIX}{self.short_name}{'_total' if self.kind == 'counter' else ''}"

    def record(self, value: float, labels: Mapping[str, str]) -> None:
        """Set a gauge, add to a counter, or add a value to a histogram."""
        tags = dict(labels)
        match self._made:
            case ray_metrics.Gauge() as gauge:
                gauge.set(value, tags)
            case ray_metrics.Counter() as counter:
                if value > 0:  # Ray refuses to add nothing
                    counter.inc(value, tags)
            case ray_metrics.Histogram() as histogram:
                histogram.observe(value, tags)

    @cached_property
    def _made(self) -> ray_metrics.Gauge | ray_metrics.Counter | ray_metrics.Histogram:
        name = PREFIX + self.short_name
        if self.kind == "gauge":
            return ray_metrics.Gauge(name, self.description, self.labels)
        if self.kind == "counter":
            return ray_metrics.Counter(name, self.description, self.labels)
        return ray_metrics.Histogram(name, self.description, list(self.buckets), self.labels)


def _gauge(name: str, description: str, labels: tuple[str, ...] = MODEL_LABELS) -> Metric:
    return Metric("gauge", name, description, labels)


def _counter(name: str, description: str, labels: tuple[str, ...] = MODEL_LABELS) -> Metric:
    return Metric("counter", name, description, labels)


def _histogram(
    name: str,
    description: str,
    labels: tuple[str, ...] = MODEL_LABELS,
    buckets: tuple[float, ...] = SECONDS,
) -> Metric:
    return Metric("histogram", name, description, labels, buckets)


# --- What an engine does; `engine_metrics` ---------------------------------------------

WAITING = _gauge("tasks_waiting", "Tasks in the engine's queue")
RUNNING = _gauge("tasks_running", "Tasks that the engine runs")
SEQUENCES = _gauge("sequences_running", "Answers (or beams) that the engine generates now")
KV_PAGES = _gauge("kv_pages", "Pages of the KV cache")
KV_FREE = _gauge("kv_pages_free", "Pages of the KV cache that are free")
KV_KEPT = _gauge("kv_pages_kept", "Pages of the KV cache that hold prefixes of ended tasks")
LOAD_SECONDS = _gauge("model_load_seconds", "How long the model took to load, downloads included")
TASKS = _counter(
    "tasks",
    "Tasks that have ended, by how: finished, refused, failed or cancelled",
    (*MODEL_LABELS, "outcome"),
)
PROMPT_TOKENS = _counter("prompt_tokens", "Tokens of prompts whose answers have begun")
GENERATED_TOKENS = _counter("generated_tokens", "Tokens of answers")
VERIFIED_TOKENS = _counter("verified_tokens", "Tokens of answers that were verified")
PREFIX_TOKENS = _counter("prefix_tokens_reused", "Tokens of prompts that were not computed again")
DECODE_STEPS = _counter("decode_steps", "Forwards that generated tokens")
DRAFTS_PROPOSED = _counter("drafts_proposed", "Guesses of next tokens")
DRAFTS_ACCEPTED = _counter("drafts_accepted", "Guesses of next tokens that were right")
KNOWN_TOKENS = _counter("known_tokens_read", "Tokens of answers that were known and only read")
IMAGES_ENCODED = _counter("images_encoded", "Images that went through the vision tower")
IMAGES_REUSED = _counter("images_reused", "Images whose features were still there")
ADAPTERS_LOADED = _gauge("adapters_loaded", "LoRA adapters that are in memory")
ADAPTER_BYTES = _gauge("adapter_bytes", "Memory that they take")
ADAPTER_LOADS = _counter("adapter_loads", "How often an adapter was loaded")
FIRST_TOKEN = _histogram(
    "first_token_seconds", "From a finished task's arrival at its replica to its first token"
)
TOKEN = _histogram(
    "token_seconds", "Between two tokens of an answer of a finished task", buckets=TOKEN_SECONDS
)
TASK = _histogram("task_seconds", "From a finished task's arrival at its replica to its end")

# --- What the pool holds; `pool_replica` -------------------------------------------------------

POOL_BYTES = _gauge("pool_memory_bytes", "Memory that models on demand may take", POOL_LABELS)
POOL_USED = _gauge("pool_memory_used_bytes", "Memory that they take or have reserved", POOL_LABELS)

# --- What clients see; `request_metrics` -----------------------------------------------

REQUESTS = _counter(
    "requests",
    "Requests that named a model or were refused, by the code of their error; ok if there is none",
    (*REQUEST_LABELS, "code"),
)
REPLAYS = _counter("replays", "Tasks run again because their replica was lost", REQUEST_LABELS)
REPLAYED_TOKENS = _counter(
    "replayed_tokens", "Tokens of such tasks that were known already, to be read", REQUEST_LABELS
)
REQUEST = _histogram(
    "request_seconds", "From a request to the end of its answer, without error", REQUEST_LABELS
)
REQUEST_FIRST_TOKEN = _histogram(
    "request_first_token_seconds",
    "From a request to the first token of its stream, which ended without error",
    REQUEST_LABELS,
)
REQUEST_TOKEN = _histogram(
    "request_token_seconds",
    "Between two tokens of an answer of such a stream",
    REQUEST_LABELS,
    TOKEN_SECONDS,
)
VERIFICATIONS = _counter(
    "verifications", "Verifications that ended without error", (*REQUEST_LABELS, "verdict")
)
VERIFICATION = _histogram(
    "verification_seconds", "From a request to its verdict, without error", REQUEST_LABELS
)

METRICS = tuple(value for value in globals().copy().values() if isinstance(value, Metric))
"""All of them, in this order."""
