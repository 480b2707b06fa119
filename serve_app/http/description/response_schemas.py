"""Schemas of answers that are published nowhere else: lists, and answers in other APIs' forms.

They list the fields that are always there. Those objects are open: there may be further fields.
"""

from __future__ import annotations

from typing import Any, get_args

from schema.model_variant import QuantizeBits

_NAME = {"type": "string", "minLength": 1}
_RECEIPT = {"$ref": "#/components/schemas/receipt"}
_COUNT = {"type": "integer", "minimum": 0}
_VARIANT = {
    "type": "object",
    "description": "A variant of a model; `replicas` has the card of each replica that runs",
    "required": ["dtype", "quantize_bits", "replicas"],
    "properties": {
        "dtype": _NAME,
        "quantize_bits": {"enum": [*get_args(QuantizeBits), None]},
        "deployment": _NAME,
        "min_replicas": _COUNT,
        "max_replicas": _COUNT,
        "replicas": {"type": "array", "items": {"type": "object"}},
        "problem": {"type": ["string", "null"], "description": "Why replicas are missing"},
    },
}
_MODEL = {
    "type": "object",
    "description": "A model and the variants in which it is served",
    "required": ["id", "object", "created", "owned_by", "variants"],
    "properties": {
        "id": _NAME,
        "object": {"const": "model"},
        "created": _COUNT,
        "owned_by": _NAME,
        "parent": _NAME | {"description": "The model, in the entry of one of its adapters"},
        "variants": {"type": "array", "minItems": 1, "items": _VARIANT},
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
            "receipt": _RECEIPT,
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

_TYPED = {"type": "object", "required": ["type"], "properties": {"type": _NAME}}


def _usage(*counts: str) -> dict[str, Any]:
    return {
        "type": ["object", "null"],
        "required": list(counts),
        "properties": dict.fromkeys(counts, _COUNT),
    }


_RESPONSE = {
    "type": "object",
    "description": "A response of OpenAI's Responses API",
    "required": ["id", "object", "created_at", "model", "status", "output", "usage", "seed"],
    "properties": {
        "id": _NAME,
        "object": {"const": "response"},
        "created_at": _COUNT,
        "model": _NAME,
        "status": {"enum": ["completed", "incomplete"]},
        "output": {"type": "array", "minItems": 1, "items": _TYPED},
        "usage": _usage("input_tokens", "output_tokens", "total_tokens"),
        "store": {"const": False},
        "seed": _COUNT,
        "receipt": _RECEIPT,
        "system_fingerprint": {"type": ["string", "null"]},
    },
}
_ANTHROPIC_MESSAGE = {
    "type": "object",
    "description": "A message of Anthropic's Messages API",
    "required": ["id", "type", "role", "model", "content", "stop_reason", "usage", "seed"],
    "properties": {
        "id": _NAME,
        "type": {"const": "message"},
        "role": {"const": "assistant"},
        "model": _NAME,
        "content": {"type": "array", "minItems": 1, "items": _TYPED},
        "stop_reason": {"enum": ["end_turn", "max_tokens", "stop_sequence", "tool_use"]},
        "stop_sequence": {"type": ["string", "null"]},
        "usage": _usage("input_tokens", "output_tokens"),
        "seed": _COUNT,
        "receipt": _RECEIPT,
        "system_fingerprint": {"type": ["string", "null"]},
    },
}
_ANTHROPIC_ERROR = {
    "type": "object",
    "description": "An error of Anthropic's Messages API",
    "required": ["type", "error", "request_id"],
    "properties": {
        "type": {"const": "error"},
        "error": {
            "type": "object",
            "required": ["type", "message"],
            "properties": {"type": _NAME, "message": _NAME, "details": {"type": "object"}},
        },
        "request_id": {"type": "string"},
    },
}

_PUBLIC_KEY = {
    "type": "object",
    "description": "A public key; `kid` is its thumbprint (RFC 7638), the `key_id` of receipts",
    "required": ["kty", "crv", "x", "kid"],
    "properties": {
        "kty": {"const": "OKP"},
        "crv": {"const": "Ed25519"},
        "x": {"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"},
        "kid": {"type": "string", "pattern": "^[A-Za-z0-9_-]{43}$"},
    },
}

ANSWERS: dict[str, Any] = {
    "chat_completion": _completion("chat.completion", _choice("message", _MESSAGE)),
    "text_completion": _completion("text_completion", _choice("text", {"type": "string"})),
    "response_object": _RESPONSE,
    "message": _ANTHROPIC_MESSAGE,
    "anthropic_error": _ANTHROPIC_ERROR,
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
                "deployment: `requests` by the code of their error (ok: none), `replays`, and "
                "`replayed_tokens`, which were known of these tasks when they ran again",
                "required": ["replica", "requests", "replays", "replayed_tokens"],
            },
        },
    },
    "receipt_keys": {
        "type": "object",
        "description": "A JWK Set (RFC 7517) of Ed25519 keys (RFC 8037)",
        "required": ["keys"],
        "properties": {"keys": {"type": "array", "items": _PUBLIC_KEY}},
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
