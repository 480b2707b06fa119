"""The key under which a task's model is cached."""

import hashlib
import json

from gpt_task.models import GPTTaskArgs


def generate_model_key(args: GPTTaskArgs) -> str:
    """The same for two tasks exactly if they need the same model, dtype and quantization."""
    names = json.dumps([args.model, args.dtype, args.quantize_bits])
    return hashlib.sha256(names.encode()).hexdigest()
