"""How many guesses of next tokens a server has made, and how many were right, by its own count."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness.client import Endpoint

_TIMEOUT_S = 60.0
_VLLM_PROPOSED = "vllm:spec_decode_num_draft_tokens_total"
_VLLM_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"


@dataclass(frozen=True)
class Drafts:
    """Tokens that were guessed, and those of them that were right."""

    proposed: int = 0
    accepted: int = 0

    def __add__(self, other: Drafts) -> Drafts:
        return Drafts(self.proposed + other.proposed, self.accepted + other.accepted)

    def __sub__(self, other: Drafts) -> Drafts:
        return Drafts(self.proposed - other.proposed, self.accepted - other.accepted)

    def __str__(self) -> str:
        share = f" ({self.accepted / self.proposed:.0%})" if self.proposed else ""
        return f"{self.accepted} of {self.proposed}{share}"


def graph_drafts(endpoint: Endpoint) -> Drafts:
    """Of all replicas of this project's server since they started, by ``GET /v1/models``."""
    found = Drafts()
    models = httpx.get(f"{endpoint.address}/v1/models", timeout=_TIMEOUT_S).raise_for_status()
    for model in models.json()["data"]:
        for variant in model["variants"]:
            for replica in variant["replicas"]:
                load = replica["load"]
                found += Drafts(load["drafts_proposed"], load["drafts_accepted"])
    return found


def vllm_drafts(endpoint: Endpoint) -> Drafts:
    """Of vLLM since it started, by ``GET /metrics``; none where it does not speculate."""
    page = httpx.get(f"{endpoint.address}/metrics", timeout=_TIMEOUT_S).raise_for_status()
    counts = dict.fromkeys((_VLLM_PROPOSED, _VLLM_ACCEPTED), 0)
    for family in text_string_to_metric_families(page.text):
        for sample in family.samples:
            if sample.name in counts:
                counts[sample.name] += int(sample.value)
    return Drafts(counts[_VLLM_PROPOSED], counts[_VLLM_ACCEPTED])
