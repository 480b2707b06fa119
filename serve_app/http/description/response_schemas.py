"""Schemas of answers that are published nowhere else: lists, and answers in OpenAI's form.

They list the fields that are always there. OpenAI's objects are open: there may be further fields.
"""

from __future__ import annotations

from typing import Any, get_args

from schema.model_variant import QuantizeBits

_NAME = {"type": "string", "minLength": 1}
_COUNT = {"type": "integer", "minimum": 0}
_MODEL = {
    "type": "object",
    "description": "A model and its variant; `replicas` has the card of each replica that runs",
    "required": ["id", "object", "created", "owned_by", "dtype", "quantize_bits", "replicas"],
    "properties": {
        "id": _NAME,
        "object": {"const": "model"},
        "created": _COUNT,
        "owned_by": _NAME,
        "dtype": _NAME,
        "quantize_bits": {"enum": [*get_args(QuantizeBits), None]},
        "deployment": _NAME,
        "min_replicas": _COUNT,
        "max_replicas": _COUNT,
        "replicas": {"type": "array", "items": {"type": "object"}},
        "problem": {"type": ["string", "null"], "description": "Why replicas are missing"},
    },
}


def _completion(kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    usage = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {
        "type": "object",
        "required": ["id", "object", "created", "model", "seed", "choices", "usage"],
        "properties": {
            "id": _NAME,
            "object": {"const": kind},
            "created": _COUNT,
            "model": _NAME,
            "system_fingerprint": {"type": ["string", "null"]},
            "seed": _COUNT,
            "choices": {"type": "array", "minItems": 1, "items": choice},
            "usage": {
                "type": "object",
                "required": list(usage),
                "properties": dict.fromkeys(usage, _COUNT),
            },
        },
    }


def _choice(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["index", "finish_reason", name],
        "properties": {
            "index": _COUNT,
            "finish_reason": {"type": "string"},
            name: schema,
        },
    }


_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {"role": {"const": "assistant"}, "content": {"type": ["string", "null"]}},
}

ANSWERS: dict[str, Any] = {
    "chat_completion": _completion("chat.completion", _choice("message", _MESSAGE)),
    "text_completion": _completion("text_completion", _choice("text", {"type": "string"})),
    "model": _MODEL,
    "models": {
        "type": "object",
        "required": ["object", "data", "ingress"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": {"$ref": "#/components/schemas/model"}},
            "ingress": {
                "type": "object",
                "description": "What the ingress replica that answers has counted of requests, by "
                "deployment: `requests` by the code of their error (ok: none), `replays`",
                "required": ["replica", "requests", "replays"],
            },
        },
    },
    "health": {
        "type": "object",
        "required": ["status", "replicas"],
        "properties": {
            "status": {"const": "ok"},
            "replicas": {"type": "object", "additionalProperties": _COUNT},
        },
    },
}
"""Component's name: its schema."""
