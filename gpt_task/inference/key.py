"""The key under which a task's model is cached."""

import hashlib
import json
from dataclasses import astuple

from gpt_task.models import GPTTaskArgs
from schema.model_variant import ModelVariant


def generate_model_key(args: GPTTaskArgs) -> str:
    """The same for two tasks exactly if they need the same model, dtype and quantization."""
    variant = ModelVariant(args.model, args.dtype, args.quantize_bits)
    names = json.dumps(astuple(variant))
    return hashlib.sha256(names.encode()).hexdigest()
